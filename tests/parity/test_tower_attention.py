"""A wide tower attends picture by picture in ONNX Runtime. Here narrow ones do too, and are what they are on torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.export.graph import tower_pieces
from lrkit.export.targets.target import Target
from tests.parity.test_window_tower import PICTURES, both, program_of, tower_of
from tests.programs import Runner, assert_equal, build
from tests.tiny import prompt, tiny_reasoner

SETTINGS = ReasonerSettings.model_validate({"think": {"max_latent_steps": 3}, "replay": {"num_tokens": 2}})


@pytest.fixture(autouse=True)
def narrow_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tower_pieces, "WIDE", 1)


def operators(graph: ir.Graph) -> Iterator[str]:
    """Those of nested graphs too."""
    return (node.op_type for node in ir.traversal.RecursiveGraphIterator(graph))


@pytest.mark.parametrize("provider", ["cpu", "cuda"])
def test_no_picture_sees_another(provider: str) -> None:
    """A GPU's program, which any machine can run, has a mask instead of a loop."""
    reasoner = tiny_reasoner(SETTINGS)
    program = build(reasoner, Target.model_validate({"provider": provider}), fresh_tower=True)
    found = list(operators(program.model.graph))
    # Outside of the loop over pictures, one branch in both: a question behind a look runs no tower.
    assert "MultiHeadAttention" in found and (found.count("If") > 1) == (provider == "cpu")
    runner: Any = Runner(program)
    for grids in [((1, 4, 4),), ((1, 4, 4), (1, 2, 6)), ((1, 2, 2), (1, 8, 2), (1, 4, 4), (1, 2, 2))]:
        assert_equal(reasoner, runner, prompt(3, grids=grids), fixed=True)


@pytest.mark.long
def test_layers_that_see_the_whole_picture_beside_windows(tmp_path: Path) -> None:
    tower = tower_of([1])
    run = program_of(tower, "ort", tmp_path)
    for name in ("whole windows", "several of unlike sizes", "large beside small"):
        ours, theirs = both(tower, run, PICTURES[name])
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max(), name


def test_half_precision_spells_attention_out() -> None:
    """ONNX Runtime has the fused one in fp16 on GPUs alone, and every program must run on a CPU."""
    program = build(tiny_reasoner(SETTINGS), Target(precision="fp16"), fresh_tower=True)
    assert "MultiHeadAttention" not in set(operators(program.model.graph))
