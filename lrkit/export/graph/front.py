"""The front of a bundle: a small graph that takes pixels and a prompt and gives what programs read of them.

    picture uint8 [H, W, 3], token_ids int64 [T]  ->  input_ids, position_ids, pixel_values, patch_positions, ...

So a host in another language neither cuts patches nor numbers positions: it runs the front, feeds what comes out to a
program by its names, and knows nothing of the family. The programs stay as they are. All numbers are integers, so the
front gives what `Geometry.program_feed` gives, to the last bit (runtime/checks/front_check.py holds it to that).

Place in the pipeline: bundle.py writes it where the target asks for it (`front`).

A picture has sides that are multiples of a visual token's. A question without a picture takes any such picture, black,
and a prompt without an image token: nothing refers to its patches then.

Legend: H, W pixels; T tokens of the prompt with one image token, P with one per visual token; N patches; m patches of a
side of a visual token's square.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from lrkit.contract.bundle.io_spec import TensorSpec
from lrkit.contract.bundle.manifest import FrontEntry
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError, UserError
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.saving import save_model
from lrkit.families.common.merged_patches import MergedPatches
from lrkit.families.protocols import Geometry
from lrkit.runtime.checks.front_check import front_problems
from lrkit.runtime.encode.processor import Processor

FRONT_FILE = "front.onnx"
_INT64, _UINT8 = ir.DataType.INT64, ir.DataType.UINT8
_KINDS = {"int64": _INT64, "uint8": _UINT8}
_PICTURE = "pixels of one picture, red, green, blue; both sides are multiples of a visual token's"
_TOKENS = "token ids of the prompt, with one image token for the picture, or none and a black picture"
_IDS = "token ids of the prompt, one image token per visual token"


def check_front(geometry: Geometry, settings: Sequence[ReasonerSettings] = ()) -> None:
    """Raises `UserError` where programs of that family, with those settings, read what no front makes."""
    strange = {one.name for one in geometry.program_inputs} - {"position_ids", "pixel_values", *_PLACES}
    closer = any(one.replay.fine_zoom > 1 for one in settings)
    if strange or closer or not isinstance(geometry, MergedPatches):
        read = "looks closer" if closer else f"is of the family {geometry.family}"
        raise UserError(f"front is true, and this model {read}, for which there is no front; set front=false")


def write_front(folder: Path, processor: Processor) -> FrontEntry:
    """Writes the front of the family's programs into `folder`, and holds it against Python.

    Raises:
        UserError: as `check_front`.
        ExportError: it gives other numbers.
    """
    geometry, image_id = processor.geometry, processor.image_id
    check_front(geometry)
    assert isinstance(geometry, MergedPatches)
    g = Graph()
    picture, tokens = g.input("picture", _UINT8, ("H", "W", 3)), g.input("token_ids", _INT64, ("T",))
    made = _made(g, picture, tokens, geometry, image_id)
    ids = TensorSpec(name="input_ids", dtype="int64", shape=("P",), meaning=_IDS)
    specs = (ids, *geometry.program_inputs)
    outputs = [g.typed(made[one.name], _KINDS[one.dtype], one.shape, one.name) for one in specs]
    save_model(g.model([picture, tokens], outputs, "front", {}), folder / FRONT_FILE)
    inputs = (
        TensorSpec(name="picture", dtype="uint8", shape=("H", "W", 3), meaning=_PICTURE),
        TensorSpec(name="token_ids", dtype="int64", shape=("T",), meaning=_TOKENS),
    )
    entry = FrontEntry(
        file=FRONT_FILE, inputs=inputs, outputs=specs, side=geometry.factor, least_pixels=geometry.min_pixels,
        most_pixels=geometry.max_pixels,
    )  # fmt: skip
    if problems := front_problems(folder, entry, processor):
        raise ExportError(problems[0])
    return entry


def _made(g: Graph, picture: Value, tokens: Value, geometry: MergedPatches, image_id: int) -> dict[str, Value]:
    with g.scope("size"):
        rows = g.op("Div", g.shape_of(picture, 0), [geometry.factor])
        columns = g.op("Div", g.shape_of(picture, 1), [geometry.factor])
        visual = g.op("Mul", rows, columns)
    with g.scope("patches"):
        made = {"pixel_values": _patches(g, picture, rows, columns, geometry)}
    with g.scope("places"):
        made |= {
            one.name: _PLACES[one.name](g, rows, columns, geometry.merge_size) for one in geometry.tower_inputs
        }  # fmt: skip
    with g.scope("ids"):
        made["input_ids"] = _repeated(g, tokens, image_id, visual)
    with g.scope("positions"):
        made["position_ids"] = _positions(g, made["input_ids"], image_id, rows, columns, geometry)
    return made


def _patches(g: Graph, picture: Value, rows: Value, columns: Value, geometry: MergedPatches) -> Value:
    """(N, 3 * p * p), in the order of the spatial merge."""
    side = [geometry.merge_size, geometry.patch_size]
    shape = g.op("Concat", rows, side, columns, side, [3], axis=0)
    cut = g.op("Transpose", g.op("Reshape", picture, shape), perm=[0, 3, 1, 4, 6, 2, 5])
    return g.op("Reshape", cut, [-1, geometry.patch_bytes])


def _count(g: Graph, number: Value) -> Value:
    """0, 1, ... of so many, a scalar."""
    return g.op("Range", 0, number, 1)


def _numbers(g: Graph, rows: Value, columns: Value, merge: int) -> Value:
    """The number of each patch, (N,)."""
    count = g.op("Mul", g.op("Mul", rows, columns), [merge**2])
    return _count(g, g.op("Squeeze", count, [0]))


def _patch_positions(g: Graph, rows: Value, columns: Value, merge: int) -> Value:
    numbers = _numbers(g, rows, columns, merge)
    square, inside = g.op("Div", numbers, [merge**2]), g.op("Mod", numbers, [merge**2])
    places = []
    for token, patch in (("Div", g.op("Div", inside, [merge])), ("Mod", g.op("Mod", inside, [merge]))):
        place = g.op("Add", g.op("Mul", g.op(token, square, columns), [merge]), patch)
        places.append(g.op("Unsqueeze", place, [1]))
    return g.op("Concat", *places, axis=1)


def _patch_picture(g: Graph, rows: Value, columns: Value, merge: int) -> Value:
    return g.op("Mul", _numbers(g, rows, columns, merge), [0])


def _patch_grid(g: Graph, rows: Value, columns: Value, merge: int) -> Value:
    sides = g.op("Mul", g.op("Concat", rows, columns, axis=0), [merge])
    none = g.op("Unsqueeze", _patch_picture(g, rows, columns, merge), [1])
    return g.op("Add", none, g.op("Unsqueeze", sides, [0]))


_PLACES: dict[str, Callable[[Graph, Value, Value, int], Value]] = {
    "patch_positions": _patch_positions, "patch_picture": _patch_picture, "patch_grid": _patch_grid,
}  # fmt: skip
"""What towers read beside patches: name -> (graph, rows and columns of visual tokens, m)."""


def _repeated(g: Graph, tokens: Value, image_id: int, visual: Value) -> Value:
    """(T,) -> (P,): the image token once for each visual token. Each token's place is how many tokens end before it."""
    ends = g.op("CumSum", g.op("Where", g.op("Equal", tokens, [image_id]), visual, [1]), 0)
    places = g.op("Unsqueeze", _count(g, g.op("Gather", ends, -1, axis=0)), [1])
    ended = g.cast(g.op("LessOrEqual", g.op("Unsqueeze", ends, [0]), places), _INT64)
    return g.op("Gather", tokens, g.op("ReduceSum", ended, [1], keepdims=0), axis=0)


def _positions(
    g: Graph, ids: Value, image_id: int, rows: Value, columns: Value, geometry: MergedPatches
) -> Value:  # fmt: skip
    """(3, P). Visual tokens share the first section and spread over rows and columns in the others; text behind them
    continues behind the longer side. Or all count on, as text does."""
    places = _count(g, g.op("Squeeze", g.shape_of(ids, 0), [0]))
    if geometry.visual_positions == "sequence":
        return g.op("Concat", *[g.op("Unsqueeze", places, [0])] * 3, axis=0)
    here = g.op("Equal", ids, [image_id])
    seen = g.cast(here, _INT64)
    first = g.op("ArgMax", seen, axis=0, keepdims=1)
    inside, visual = g.op("Sub", places, first), g.op("Mul", rows, columns)
    # 0 where there is no picture: nothing stands behind it.
    saved = g.op("Mul", g.op("ReduceMax", seen, [0], keepdims=1), g.op("Sub", visual, g.op("Max", rows, columns)))
    text = g.op("Sub", places, g.op("Where", g.op("GreaterOrEqual", inside, visual), saved, [0]))
    offsets = (g.value([0]), g.op("Div", inside, columns), g.op("Mod", inside, columns))
    sections = [g.op("Where", here, g.op("Add", first, offset), text) for offset in offsets]
    return g.op("Concat", *[g.op("Unsqueeze", section, [0]) for section in sections], axis=0)
