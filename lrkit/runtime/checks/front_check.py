"""Holds the front of a bundle against the geometry in Python: the same arrays, to the last bit. Torch-free.

Place in the pipeline: lrkit/export/graph/front.py asks once it has written a front, and `lrkit validate` asks again.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lrkit.contract.bundle.manifest import FrontEntry
from lrkit.errors import BundleError, TimeoutExceeded
from lrkit.families.common.merged_patches import MergedPatches
from lrkit.families.protocols import Size
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.common.stopping import Running, Stop
from lrkit.runtime.engines.onnxruntime.session import OrtGraph, load_session, said
from lrkit.runtime.engines.programs.patience import SECONDS

SHAPES = ((1, 1), (2, 1), (1, 3), (4, 3))
"""How many times wider and higher than the smallest square the pictures are that are tried."""
MOST_PIXELS = 1 << 24
"""Of a picture that is tried."""
_AGAIN = "do not use this bundle, or export it again"


def front_problems(folder: Path, entry: FrontEntry, processor: Processor) -> list[str]:
    """One sentence where the front gives other arrays than Python, or cannot be run."""
    path, geometry = folder / entry.file, processor.geometry
    if not isinstance(geometry, MergedPatches):
        return [f"{path}: is a front, and there is none for the family {geometry.family}; {_AGAIN}"]
    sizes = {"side": geometry.factor, "least_pixels": geometry.min_pixels, "most_pixels": geometry.max_pixels}
    for name, size in sizes.items():
        if (told := getattr(entry, name)) != size:
            return [f"{path}: bundle.json says that {name} is {told}, its other files say {size}; {_AGAIN}"]
    try:
        import onnxruntime

        with Running(Stop.within(SECONDS)):
            session = load_session(path, onnxruntime.SessionOptions(), ["CPUExecutionProvider"], [])
            graph = OrtGraph(session, path)
            for size, tokens in _tried(entry, processor):
                if wrong := _wrong(graph, entry, processor, size, tokens):
                    return [f"{path}: gives {wrong}; {_AGAIN}"]
    except (BundleError, TimeoutExceeded) as error:
        return [str(error) if isinstance(error, BundleError) else f"{path}: has no end; {_AGAIN}"]
    except Exception as error:  # onnxruntime's own classes have no common base below Exception
        return [f"{path}: ONNX Runtime cannot load it ({said(error)}); {_AGAIN}"]
    return []


def _tried(entry: FrontEntry, processor: Processor) -> Iterator[tuple[Size | None, list[int]]]:
    """(size of a picture or None, prompt with one image token or none)."""
    image, word = processor.image_id, processor.eos_id
    if entry.side**2 <= MOST_PIXELS:
        yield None, [word, word]
    least = entry.side * math.ceil(math.sqrt(entry.least_pixels) / entry.side)
    for columns, rows in SHAPES:
        size = columns * least, rows * least
        if math.prod(size) <= MOST_PIXELS and processor.geometry.seen_size(*size) == size:
            yield from ((size, tokens) for tokens in ([image], [image, word], [word, word, image, word, word]))


def _wrong(
    graph: OrtGraph, entry: FrontEntry, processor: Processor, size: Size | None, tokens: Sequence[int]
) -> str | None:  # fmt: skip
    wide, high = size or (entry.side, entry.side)
    pixels = np.zeros((high, wide, 3), np.uint8)
    if size is not None:
        pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    names = [spec.name for spec in entry.outputs]
    found = graph.run(names, {"picture": pixels, "token_ids": np.array(tokens, np.int64)})
    expected = expected_of(processor, None if size is None else pixels, tokens)
    if set(names) != set(expected):
        return f"{', '.join(names)}, where programs read {', '.join(expected)}"
    for name, array in zip(names, found, strict=True):
        if array.dtype != expected[name].dtype or not np.array_equal(array, expected[name]):
            return f"other {name} than Python for a picture of {wide} x {high} pixels"
    return None


def expected_of(processor: Processor, pixels: np.ndarray | None, tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """What programs read of pixels (H, W, 3) and a prompt with one image token; None: no picture."""
    geometry, grids, patches = processor.geometry, [], None
    if pixels is not None:
        grids, patches = [geometry.grid(pixels.shape[1], pixels.shape[0])], geometry.cut(Image.fromarray(pixels))
    ids = processor.with_pictures(tokens, grids)
    feed = geometry.program_feed(ids, processor.image_id, grids, patches)
    return {"input_ids": np.array(ids, np.int64), **feed}
