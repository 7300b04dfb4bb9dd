"""Every value of every setting on OpenVINO: a program that it takes gives what ONNX Runtime gives, number by number,
with equal latent steps, replayed tokens, depths and words."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError
from lrkit.export.targets.target import Target
from lrkit.runtime.engines.onnxruntime.engine import optimizers_off
from lrkit.runtime.engines.openvino.compiled import compile_graph
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions
from tests import variants
from tests.programs import Runner, assert_equal, build
from tests.tiny import prompt, tiny_reasoner, with_windows

pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')

SINGLE, PAIRS, TARGETS = variants.single_variants(), variants.paired_variants(), variants.target_variants()
STANDARD = Target(dialect="standard")
PROMPTS = (prompt(3, grids=((1, 4, 4), (1, 2, 6))), prompt(4), prompt(5, grids=()))
"""Two pictures, one, none."""
CLOSE = {"fp32": 1e-4, "fp16": 5e-2}
ROOM = {"max_patches": 160}
FEW = ("base", "routing.depth=3")


class OnOpenVino(Runner):
    """The program of a `Runner` in OpenVINO; the form and the values of its questions are the same."""

    def __init__(self, runner: Runner, folder: Path) -> None:
        self.program = runner.program
        ir.save(runner.program.model, folder / "program.onnx")
        self.session = compile_graph(  # pyright: ignore[reportAttributeAccessIssue]
            folder / "program.onnx", runner.program.spec, OpenVinoOptions(threads=1), Numbers("f32")
        )


def runners(settings: ReasonerSettings, target: Target, folder: Path) -> tuple[Runner, OnOpenVino]:
    off = {"session.disable_quant_qdq": "1"} if optimizers_off("standard", target.precision) else {}
    runner = Runner(build(tiny_reasoner(settings), target, **ROOM), **off)
    return runner, OnOpenVino(runner, folder)


def differences(settings: ReasonerSettings, target: Target, folder: Path, must: bool = False) -> list[str]:
    """What OpenVINO gives other than ONNX Runtime, for each prompt; `must`: there has to be a program."""
    try:
        runner, other = runners(settings, target, folder)
    except ExportError as error:  # a value that programs do not have, which tests of the export are about
        return [str(error)] if must else []
    close = CLOSE["fp16" if target.computes_fp16 else "fp32"]
    found: list[str] = []
    for number, plain in enumerate(PROMPTS):
        asked = with_windows(plain, settings.replay.fine_zoom) if settings.replay.source == "fine" else plain
        expected: dict[str, Any] = runner(asked, fixed=True)
        seen: dict[str, Any] = other(asked, fixed=True)
        for name, want in expected.items():
            floats = want.dtype.kind == "f"
            off = np.abs(seen[name] - want).max(initial=0) / max(1.0, np.abs(want).max(initial=0)) if floats else 0.0
            exact = floats or target.computes_fp16 or np.array_equal(seen[name], want)
            if seen[name].shape != want.shape or not off <= close or not exact:
                found.append(f"prompt {number}: {name} is off by {off:.1e}")
    return found


@pytest.mark.parametrize("name", FEW)
def test_a_few_values_are_as_on_torch(name: str, tmp_path: Path) -> None:
    reasoner = tiny_reasoner(SINGLE[name])
    _, other = runners(SINGLE[name], STANDARD, tmp_path)
    for asked in PROMPTS:
        assert_equal(reasoner, other, asked, fixed=True, latents=SINGLE[name].think.max_latent_steps)


@pytest.mark.parametrize("kind", ["int4 None"])
def test_number_types(kind: str, tmp_path: Path) -> None:
    assert differences(SINGLE["base"], TARGETS[kind], tmp_path) == []


def all_differences(settings: dict[str, ReasonerSettings], folder: Path, must: bool = False) -> dict[str, list[str]]:
    """Those of each of some settings that has any."""
    found = {name: differences(one, STANDARD, folder, must) for name, one in settings.items()}
    return {name: said for name, said in found.items() if said}


@pytest.mark.long
def test_every_value(tmp_path: Path) -> None:
    assert all_differences(variants.packed_variants(), tmp_path, must=True) == {}


@pytest.mark.slow
def test_every_value_alone(tmp_path: Path) -> None:
    assert all_differences(SINGLE, tmp_path) == {}


@pytest.mark.slow
def test_every_number_type(tmp_path: Path) -> None:
    found = {
        name: differences(SINGLE["base"], target, tmp_path)
        for name, target in TARGETS.items()
        if target.scheme.encoding("standard") or not target.scheme.integers
    }
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.slow
def test_every_pair_of_values(tmp_path: Path) -> None:
    assert all_differences(PAIRS, tmp_path) == {}
