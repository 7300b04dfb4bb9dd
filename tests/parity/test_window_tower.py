"""Qwen2.5-VL's tower in a program against transformers' own, in every dialect: windows that do not divide a picture,
pictures smaller than a window, several of unlike sizes, long ones.

The tower is traced with 4 merged squares and run with other numbers, so nothing of the example's may be left in it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from lrkit.contract.bundle.manifest import Dialect
from lrkit.export.graph.dialects import DIALECTS
from lrkit.export.graph.nodes import Graph
from lrkit.export.graph.program import DTYPES
from lrkit.export.targets.target import Target
from lrkit.export.weights.layer_recipe import Norm
from lrkit.families.qwen2_5_vl.geometry import WindowedPatches
from lrkit.families.qwen2_5_vl.tower import PART
from tests.families.conftest import noise

WIDTH, OUT = 32, 24
Run = Callable[[dict[str, np.ndarray]], np.ndarray]
PICTURES = {
    "whole windows": [(32, 64)],
    "windows that are cut": [(80, 72)],
    "smaller than a window": [(8, 8)],
    "as wide as a window, lower": [(32, 16)],
    "several of unlike sizes": [(8, 8), (100, 8), (64, 90), (8, 8)],
    "very long": [(8, 1600)],
    "very wide": [(1600, 24)],
    "many that are smaller than a window": [(16, 24)] * 12,
    "large beside small": [(8, 16), (240, 200), (16, 8)],
}
"""Sizes in pixels; a visual token has 8 x 8, a window 32 x 32."""
GEOMETRY = WindowedPatches(
    patch_size=4, min_pixels=64, max_pixels=10**6, window_size=32, image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4)
)


def tower_of(whole: list[int]) -> Any:
    """Three layers; the numbers in `whole` attend to the whole picture."""
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=WIDTH, intermediate_size=52, num_heads=2, out_hidden_size=OUT, patch_size=4,
        window_size=32, fullatt_block_indexes=whole,
    )  # fmt: skip
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    tower.set_attn_implementation("sdpa")
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return tower


def program_of(tower: Any, dialect: Dialect, folder: Path, precision: str = "fp32") -> Run:
    """The tower's graph alone, run by ONNX Runtime, which reads both dialects."""
    target = Target.model_validate({"precision": precision, "dialect": dialect})
    writer = DIALECTS[dialect].writer(target, no_weight, Norm("rms", 1e-6))
    graph = Graph(writer.floats)
    specs = [spec for spec in GEOMETRY.program_inputs if spec.name != "position_ids"]
    given = {spec.name: graph.input(spec.name, DTYPES[spec.dtype], spec.shape) for spec in specs}
    visual = PART.write(tower, GEOMETRY, writer)(graph, given)
    made = graph.model(list(given.values()), [graph.typed(visual, writer.floats, ("V", OUT), "visual")], "tower", {})
    file = str(folder / f"{dialect}.onnx")
    ir.save(made, file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda feed: np.asarray(session.run(None, feed)[0])


def no_weight(role: str) -> np.ndarray:
    raise AssertionError(f"the tower asks for {role}, which is the language model's")


@torch.no_grad()
def both(tower: Any, run: Run, sizes: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Visual tokens of these pictures: the program's and transformers'."""
    cut = np.concatenate([GEOMETRY.cut(noise(*size, seed=number)) for number, size in enumerate(sizes)])
    grids = [GEOMETRY.grid(*size) for size in sizes]
    theirs = tower(torch.from_numpy(GEOMETRY.pixel_values(cut)), grid_thw=torch.tensor(grids)).pooler_output
    return run({"pixel_values": cut, **GEOMETRY.tower_feed(grids)}), theirs.numpy()


@pytest.mark.parametrize(
    "dialect", ["ort", *(pytest.param(name, marks=pytest.mark.long) for name in sorted(DIALECTS) if name != "ort")]
)
def test_every_visual_token_is_transformers(dialect: Dialect, tmp_path: Path) -> None:
    tower = tower_of([1])
    run = program_of(tower, dialect, tmp_path)
    for name, sizes in PICTURES.items():
        ours, theirs = both(tower, run, sizes)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), name


def test_a_tower_without_windows_and_that_windows_matter(tmp_path: Path) -> None:
    """The comparison would see a program that forgets them."""
    run = program_of(tower_of([0, 1, 2]), "ort", tmp_path)
    sizes = PICTURES["windows that are cut"]
    ours, theirs = both(tower_of([0, 1, 2]), run, sizes)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    ours, theirs = both(tower_of([1]), run, sizes)
    assert np.abs(ours - theirs).max() > 0.05 * np.abs(theirs).max()


@pytest.mark.slow
def test_a_tower_with_nothing_but_windows(tmp_path: Path) -> None:
    tower = tower_of([])
    ours, theirs = both(tower, program_of(tower, "ort", tmp_path), PICTURES["several of unlike sizes"])
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.slow
def test_a_tower_in_half_precision(tmp_path: Path) -> None:
    tower = tower_of([2])
    run = program_of(tower, "standard", tmp_path, "fp16")
    for sizes in (PICTURES["windows that are cut"], PICTURES["large beside small"]):
        ours, theirs = both(tower, run, sizes)
        assert np.abs(ours - theirs).max() < 2e-2 * np.abs(theirs).max()
