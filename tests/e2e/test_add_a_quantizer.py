"""A stranger adds a quantizer: one file (tests/toy_quantizer.py) and one row. An export with it is compared with torch,
answers, and says in its manifest what it is; a lrkit without the row refuses it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lrkit import Reasoner
from lrkit.cli.main import main
from lrkit.contract.bundle.manifest import Role
from lrkit.contract.schemes import SCHEMES
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError
from lrkit.export.bundle import ExportReport, export_bundle
from lrkit.export.subject import CheckpointOrigin, CheckpointSubject, Origin
from lrkit.export.targets.target import Target
from lrkit.export.weights.quantizers.quantizer import Calibrate, Calibration, quantizer_of
from lrkit.model.checkpoint import load_checkpoint
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.engines.torch.engine import TorchEngine
from tests.bundles import CAPACITY, QUESTION, SETTINGS, picture, processor
from tests.programs import build, with_rounded_weights
from tests.tiny import tiny_reasoner
from tests.toy_quantizer import NAME, ROW

MODULES = {
    "qkv": "self_attn.q_proj", "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
    "gate_up": "mlp.gate_proj", "down": "mlp.down_proj",
}  # fmt: skip
"""Matrix of a layer in a program -> a module of torch that reads the same input."""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, NAME, ROW)


def gathered(reasoner: LatentReasoner) -> dict[str, Calibration]:
    """What torch's layers read during an answer, latent steps included, by their names."""
    seen: dict[str, list[np.ndarray]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, given, out: seen.setdefault(name, []).append(given[0].detach().flatten(0, -2).numpy())

    model: torch.nn.Module = reasoner.backbone.model
    layers = [(name, module) for name, module in model.named_modules() if "language_model.layers" in name]
    hooks = [module.register_forward_hook(note(n)) for n, module in layers if isinstance(module, torch.nn.Linear)]
    Reasoner(TorchEngine(reasoner, processor())).ask(picture(), QUESTION)
    for hook in hooks:
        hook.remove()
    return {name: Calibration.of(np.concatenate(inputs)) for name, inputs in seen.items()}


@dataclass(frozen=True)
class HeldOrigin(CheckpointOrigin):
    """A checkpoint whose torch model holds what the program's integers stand for."""

    target: Target
    calibrate: Calibrate

    def reasoner(self) -> LatentReasoner:
        return with_rounded_weights(super().reasoner(), self.target, calibrate=self.calibrate)


class Held(CheckpointSubject):
    check_rounded = True

    def __init__(self, folder: Path, target: Target, calibrate: Calibrate) -> None:
        super().__init__(folder)
        self.origin = HeldOrigin(folder, target, calibrate)

    def origins(self, baselines: bool) -> dict[Role, Origin]:
        return {"latent": self.origin}


def export(checkpoint: Path, place: Path, dialect: str) -> ExportReport:
    known, target = gathered(load_checkpoint(checkpoint, dtype=torch.float32).reasoner), target_of(dialect)
    assert len(known) == 4 * 7, "four layers of seven matrices"

    def calibrate(role: Role, matrix: str) -> Calibration | None:
        number, _, name = matrix.partition(".")
        return known.get(f"model.language_model.layers.{number}.{MODULES.get(name)}")

    subject = Held(checkpoint, target, known.get)
    return export_bundle(subject, place, target, trail_set("main", "test", 2), calibrate=calibrate)


@pytest.fixture(scope="module")
def exported(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """For ONNX Runtime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCHEMES, NAME, ROW)
        return export(bundle.parent / "latent", tmp_path_factory.mktemp("toy") / "bundle", "ort")


def target_of(dialect: str) -> Target:
    values: dict[str, Any] = {"dialect": dialect, "precision": NAME, "limits": CAPACITY, "int4": {"accuracy_level": 0}}
    return Target.model_validate(values)


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from operators(attribute.g)


def check(report: ExportReport, dialect: str) -> None:
    entry, found = report.manifest.programs["latent"], report.manifest.validation["latent"]
    assert found.passed and found.measured["proof"] == "numbers" and found.tolerance["numbers"] == 1e-4
    agreement = found.measured["agreement"]
    assert isinstance(agreement, dict) and set(agreement.values()) == {1.0}
    assert (entry.precision, entry.accuracy_level) == (NAME, 0 if dialect == "ort" else None)
    asked = {
        "block": 16,
        "accuracy_level": 0,
        "method": "rtn",
        "matrices": {},
        "head": NAME,
        "embedding": "int8",
        "vision": NAME,
        "chunks": "same",
        "stored": "all",
    }
    assert report.manifest.target["int4"] == asked, "what was not chosen is the row's"
    model = onnx.load(report.folder / entry.file, load_external_data=False)
    assert ROW.encodings[dialect] in set(operators(model.graph))
    assert check_bundle(report.folder).problems == []


@pytest.mark.usefixtures("toy")
def test_an_export_is_what_torch_computes_with_its_integers(exported: ExportReport) -> None:
    check(exported, "ort")
    answer = Reasoner.load(exported.folder).ask(picture(), QUESTION)
    assert answer.latent_steps == 3 and answer.text


@pytest.mark.usefixtures("toy")
def test_it_is_in_both_dialects(bundle: Path, tmp_path: Path) -> None:
    check(export(bundle.parent / "latent", tmp_path / "bundle", "standard"), "standard")


@pytest.mark.usefixtures("toy")
def test_calibration_reaches_the_quantizer(exported: ExportReport) -> None:
    """It makes other integers of all layers, and of nothing that has no data; they err less where the model looks."""
    with_data = exported.quantization_errors["latent"]
    without = build(tiny_reasoner(SETTINGS["latent"]), target_of("ort")).errors
    changed = {role for role in with_data if with_data[role] != without[role]}
    assert changed == {role for role in with_data if role[0].isdigit()}
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 32)).astype(np.float32)
    inputs = (random.standard_normal((64, 32)) * np.geomspace(0.1, 10, 32)).astype(np.float32)
    quantizer = quantizer_of(ROW, 16)
    errors = [
        np.linalg.norm((quantizer(weight, "0.qkv", data).dequantize() - weight) @ inputs.T)
        for data in (Calibration.of(inputs), None)
    ]
    assert errors[0] < errors[1]


def test_a_bundle_of_an_unknown_scheme_is_refused(exported: ExportReport) -> None:
    assert exported.manifest.programs["latent"].precision == NAME
    with pytest.raises(BundleError) as refused:
        Reasoner.load(exported.folder)
    said = str(refused.value)
    assert (
        "the latent program holds its weights as 'int4-search', where this lrkit knows fp32, fp16, int4, int8" in said
    )
    assert said.endswith("update lrkit, or export the checkpoint again") and "\n" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["precision=itn4"],
            "unknown precision 'itn4'; known: fp32, fp16, int4, int8, w8a8, int4-offsets, fp8, nvfp4; did you",
        ),
        (["precision=int4", "int4.vision=itn4"], "int4.vision is 'itn4', and int4 takes float, int4, w8a8; did you"),
        (["precision=int4", "int4.block=48"], "int4.block is 48, and int4 takes 128, 64, 32"),
        (["precision=int4", "int4.embedding=fp8"], "int4.embedding is 'fp8', and int4 takes int8, int4, float"),
    ],
)
def test_a_misspelt_scheme_is_one_sentence(bundle: Path, changes: list[str], said: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", str(bundle.parent / "latent"), "--target", "cpu-fp32", *changes, "-o", "never"])
    text = " ".join(capsys.readouterr().err.split())
    assert left.value.code == 2 and said in text, text


def test_a_dialect_that_cannot_read_the_integers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEMES, NAME, replace(ROW, encodings={"ort": "MatMulNBits"}))
    assert target_of("ort").scheme.encoding("ort") == "MatMulNBits"
    with pytest.raises(
        ValueError, match=r"precision int4-search has no operator in the dialect standard; set dialect=ort"
    ):
        target_of("standard")
