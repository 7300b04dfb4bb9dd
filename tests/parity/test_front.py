"""The front of a bundle gives the arrays of `Geometry.program_feed`, to the last bit, whatever the picture's size."""

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from lrkit.contract.prompt import PromptFormat
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.errors import UserError
from lrkit.export.graph.front import check_front, write_front
from lrkit.families.common.merged_patches import MergedPatches
from lrkit.families.qwen2_5_vl.geometry import WindowedPatches
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.families.qwen3_vl.geometry import Qwen3VLPatches
from lrkit.runtime.checks.front_check import expected_of, front_problems
from lrkit.runtime.encode.processor import Processor

LIMITS = {"min_pixels": 64, "max_pixels": 1 << 16}
GEOMETRIES: dict[str, MergedPatches] = {
    "grid": ImageGeometry(patch_size=4, merge_size=2, **LIMITS),
    "sequence": ImageGeometry(patch_size=4, merge_size=2, visual_positions="sequence", **LIMITS),
    "merge 3": ImageGeometry(patch_size=5, merge_size=3, **LIMITS),
    "merge 1": ImageGeometry(patch_size=8, merge_size=1, **LIMITS),
    "qwen3_vl": Qwen3VLPatches(patch_size=4, merge_size=2, **LIMITS),
}


def processor(geometry: MergedPatches) -> Processor:
    return Processor(build_word_tokenizer(["room"]), geometry, PromptFormat())


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_front_gives_what_programs_read(tmp_path: Path, name: str) -> None:
    reader = processor(GEOMETRIES[name])
    entry, rng, seen = write_front(tmp_path, reader), np.random.default_rng(1), 0
    session = onnxruntime.InferenceSession(str(tmp_path / entry.file))
    for columns, rows in itertools.product(range(1, 6), repeat=2):
        pixels = rng.integers(0, 256, (rows * entry.side, columns * entry.side, 3), np.uint8)
        before, after = rng.integers(0, 5, 2)
        for tokens in ([7] * before + [reader.image_id] + [7] * after, [7] * (before + 1)):
            picture = pixels if reader.image_id in tokens else np.zeros((entry.side, entry.side, 3), np.uint8)
            expected = expected_of(reader, pixels if reader.image_id in tokens else None, tokens)
            found = session.run(None, {"picture": picture, "token_ids": np.array(tokens, np.int64)})
            assert [one.name for one in session.get_outputs()] == list(expected)
            for array, right in zip(found, expected.values(), strict=True):
                assert array.dtype == right.dtype and np.array_equal(array, right)
            seen += 1
    assert seen == 50


def test_a_front_of_other_settings_is_told(tmp_path: Path) -> None:
    entry = write_front(tmp_path, processor(GEOMETRIES["grid"]))
    assert front_problems(tmp_path, entry, processor(GEOMETRIES["grid"])) == []
    (told,) = front_problems(tmp_path, entry, processor(GEOMETRIES["sequence"]))
    assert "gives other position_ids than Python" in told
    (told,) = front_problems(tmp_path, entry, processor(GEOMETRIES["qwen3_vl"]))
    assert "where programs read input_ids, position_ids, pixel_values, patch_positions, patch_picture" in told
    (told,) = front_problems(tmp_path, entry, processor(GEOMETRIES["merge 3"]))
    assert "bundle.json says that side is 8, its other files say 15" in told
    (tmp_path / entry.file).write_bytes(b"no graph")
    (told,) = front_problems(tmp_path, entry, processor(GEOMETRIES["grid"]))
    assert "ONNX Runtime cannot load it" in told


def test_what_has_no_front_is_refused() -> None:
    with pytest.raises(UserError, match="this model is of the family qwen2_5_vl, for which there is no front"):
        check_front(WindowedPatches(patch_size=4, merge_size=2, window_size=16, **LIMITS))
    closer = ReasonerSettings.model_validate({"replay": {"num_tokens": 1, "source": "fine"}})
    with pytest.raises(UserError, match="this model looks closer, for which there is no front; set front=false"):
        check_front(GEOMETRIES["grid"], [closer])
