"""A family's program is its model on torch: logits, latent states, replayed tokens, depths, every spoken token; and its
bundle is validated and answers in a Python that has no torch."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrkit import Reasoner
from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.sample import Sample
from lrkit.errors import LrkitError
from lrkit.export.bundle import ExportReport, export_bundle
from lrkit.export.check_verdict import PARTS
from lrkit.export.targets.engine_target import EngineTarget
from lrkit.export.targets.target import ProgramLimits, Target
from lrkit.export.tensorrt.into_bundle import add_engines
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.encode.processor import Processor
from tests.commands import lrkit
from tests.families.cases import ROWS, FamilyCase
from tests.families.reasoners import rich_reasoner, settings_of, unlike_samples

ROOT = Path(__file__).resolve().parents[2]
WORDS = 5
CLOSE = {"fp32": 1e-4, "int4": 1e-4, "int8": 1e-4, "fp16": 5e-2}
"""Largest difference of a number, as a part of the largest one. Torch holds the values of the integers."""
WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "peft", "accelerate", "onnx", "onnx_ir"):
    sys.modules[name] = None
from lrkit import Reasoner
reasoner = Reasoner.load(sys.argv[1], threads=1)
for images in ([], sys.argv[3:4], sys.argv[3:]):
    print(repr(reasoner.ask(images or None, sys.argv[2]).text))
"""


@dataclass(frozen=True)
class Trained:
    """A checkpoint of the family with everything on, and what it is asked."""

    case: FamilyCase
    folder: Path
    processor: Processor
    samples: Sequence[Sample]

    def limits(self) -> ProgramLimits:
        """Room for the samples and no more."""
        prompts = [self.processor.encode_prompt(one.images, one.question) for one in self.samples]
        marker = len(self.processor.answer_prefix_ids)
        return ProgramLimits(
            max_prompt_tokens=max(len(prompt.ids) for prompt in prompts) + marker,
            max_patches=max(len(prompt.patches) for prompt in prompts if prompt.patches is not None),
            max_images=max(len(one.images) for one in self.samples),
            max_new_tokens=WORDS,
        )

    def target(self, precision: str, dialect: str = "ort", **values: Any) -> Target:
        """accuracy_level 1: activations are not rounded, so that the comparison is of graphs."""
        int4 = {"block": 32, "accuracy_level": 1}
        return Target.model_validate(
            {"precision": precision, "dialect": dialect, "limits": self.limits(), "int4": int4, **values}
        )

    def export(self, place: Path, target: Target, form: Form = "program") -> ExportReport:
        from tests.families.rounded import RoundedSubject

        subject = RoundedSubject(self.folder, target)
        return export_bundle(subject, place, target, self.samples, form=form, allow_unproven=True)


@pytest.fixture(scope="module")
def trained(case: FamilyCase, folder: Path, processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Not trained in truth: its new weights are drawn, so that none can be forgotten."""
    place = tmp_path_factory.mktemp("program") / "checkpoint"
    settings = settings_of(case, distill={"weight": 0.0}, routing={"depth": 1, "alpha": 6})
    reasoner = rich_reasoner(folder, settings, processor, "lora")
    save_checkpoint(place, reasoner, processor, base=str(folder), info={"stage": "drawn"})
    return Trained(case, place, processor, unlike_samples(case))


def check(trained: Trained, place: Path, target: Target, form: Form = "program") -> ExportReport:
    """Exports, and holds the comparison with torch against `CLOSE`."""
    report = trained.export(place, target, form)
    found = report.manifest.validation["latent"].measured
    numbers = {key: found[key] for key in ("prefill_logits", "latent_states")}
    assert max(numbers.values()) < CLOSE[target.precision], numbers
    if target.precision != "fp16":
        assert set(found["agreement"].values()) == {1.0}, found["agreement"]
    assert {"spoken tokens", "replayed tokens"} <= set(found["agreement"])
    behind = found["scenes"]
    assert behind["samples"] > 0, "samples with pictures are also asked behind a look"
    assert behind["numbers"] <= (PARTS if target.precision == "fp32" else CLOSE[target.precision]), behind
    assert behind["numbers_torch"] < CLOSE[target.precision], behind
    if target.precision != "fp16":
        assert behind["agreement"] == 1.0, behind
    assert report.manifest.family == trained.case.name
    assert check_bundle(place).problems == []
    return report


@pytest.fixture(scope="module")
def bundle(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, compared with torch number by number."""
    place = tmp_path_factory.mktemp("program") / "fp32"
    check(trained, place, trained.target("fp32"))
    return place


def test_the_float_program_answers_without_torch_as_torch_does(trained: Trained, bundle: Path) -> None:
    """No picture, one, several; the bundle was compared with torch when it was made."""
    pictures: list[Path] = []
    for number, picture in enumerate(trained.samples[1].images):
        pictures.append(bundle.parent / f"{number}.png")
        picture.save(pictures[-1])  # pyright: ignore
    on_torch = Reasoner.from_checkpoint(trained.folder, dtype="float32")
    asked = trained.case.question
    shown = ([], pictures[:1], pictures)
    wanted = [on_torch.ask(list(images) or None, asked, max_new_tokens=WORDS).text for images in shown]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(bundle), asked, *map(str, pictures)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [repr(text) for text in wanted]


@pytest.mark.long
def test_the_program_of_integers_is_torch_with_their_values(trained: Trained, tmp_path: Path) -> None:
    report = check(trained, tmp_path / "int4", trained.target("int4"))
    errors = report.quantization_errors["latent"]
    assert len(errors) > 2 and 0 < max(errors.values()) < 0.2


@pytest.mark.long
@pytest.mark.shared(among=2)
@pytest.mark.parametrize(("precision", "dialect", "form"), [("int4", "ort", "program"), ("fp32", "standard", "step")])
def test_the_program_looks_closer_as_torch_does(
    case: FamilyCase, folder: Path, processor: Processor, tmp_path: Path, precision: str, dialect: str, form: Form
) -> None:
    """Windows of 3 x 3 visual tokens, more than one window of a tower that attends within windows; they run out."""
    settings = settings_of(
        case, replay={"num_tokens": 2, "source": "fine", "zoom": 3}, distill={"weight": 0.0},
        routing={"depth": 1, "alpha": 6},
    )  # fmt: skip
    try:
        seeing = copy(processor).see_for(settings.replay)
    except LrkitError:
        pytest.skip("has no windows")
    place = tmp_path / "checkpoint"
    reasoner = rich_reasoner(folder, settings, processor, "lora")
    save_checkpoint(place, reasoner, processor, base=str(folder), info={"stage": "drawn"})
    trained = Trained(case, place, seeing, unlike_samples(case))
    report = check(trained, tmp_path / "bundle", trained.target(precision, dialect), form)
    windows = report.manifest.programs["latent"].spec.input("windows")
    assert windows.shape[1:] == (9 * seeing.geometry.patches_per_token, seeing.geometry.patch_bytes)


OTHER_WAYS: dict[str, tuple[str, str, Form]] = {
    "fp16": ("fp16", "ort", "program"),
    "fp32, standard": ("fp32", "standard", "program"),
    "fp16, standard": ("fp16", "standard", "program"),
    "int4, standard, step": ("int4", "standard", "step"),
    "int8, step": ("int8", "ort", "step"),
}


@pytest.mark.long
@pytest.mark.shared(among=5)
@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_to_export(trained: Trained, way: str, tmp_path: Path) -> None:
    precision, dialect, form = OTHER_WAYS[way]
    target = trained.target(precision, dialect)
    part = next((part for part in trained.case.cannot if part in way or (part == "step_form" and form == "step")), None)
    ask: Callable[[], Any] = partial(check, trained, tmp_path / "bundle", target, form)
    if part is None:
        ask()
        return
    with pytest.raises(LrkitError) as said:
        ask()
    assert re.search(trained.case.cannot[part], str(said.value)) and not (tmp_path / "bundle").exists()


@pytest.mark.long
@pytest.mark.shared(among=2)
@pytest.mark.parametrize("form", ["program", "step"])
def test_tensorrt_rtx_builds_an_engine(trained: Trained, form: Form, tmp_path: Path) -> None:
    """NVIDIA's parser and builder, without a GPU; what lrkit foretells of the graph is what they say."""
    pytest.importorskip("tensorrt_rtx", reason='needs the package tensorrt_rtx: pip install "lrkit[tensorrt-rtx]"')
    if "tensorrt" in trained.case.cannot:
        pytest.skip("the family has no programs for TensorRT")
    place = tmp_path / "bundle"
    trained.export(place, trained.target("fp16", "standard"), form)
    assert lrkit("preflight", place, "--target", "rtx-pc") == 0
    add_engines(place, EngineTarget(kind="tensorrt-rtx", archs=("sm89",)))
    assert lrkit("validate", place) == 0
    assert list(place.rglob("*sm89*"))


ON_OPENVINO: dict[str, tuple[str, Form]] = {
    "fp32": ("fp32", "program"), "fp16": ("fp16", "program"), "int4": ("int4", "program"),
    "int4, step": ("int4", "step"),
}  # fmt: skip


def on_openvino(trained: Trained, way: str, place: Path) -> None:
    """Logits, latent states, replayed tokens, depths and words, compared when the bundle is made; then it is opened."""
    pytest.importorskip("openvino", reason='needs the package openvino: pip install "lrkit[openvino]"')
    precision, form = ON_OPENVINO[way]
    if any(part in way or part in ("standard", f"{form}_form") for part in trained.case.cannot):
        pytest.skip("the family has no such programs")
    report = check(trained, place, trained.target(precision, "standard", openvino={}), form)
    assert report.manifest.made_for is not None
    assert Reasoner.load(place).engine.name == "openvino"


@pytest.mark.long
def test_openvino_answers_as_torch_does(trained: Trained, tmp_path: Path) -> None:
    """Each family in one way, all of them together in every way."""
    ways = list(ON_OPENVINO)
    on_openvino(trained, ways[list(ROWS).index(trained.case.name) % len(ways)], tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("way", ON_OPENVINO)
def test_openvino_answers_as_torch_does_in_every_way(trained: Trained, way: str, tmp_path: Path) -> None:
    on_openvino(trained, way, tmp_path / "bundle")


@pytest.mark.long
def test_its_bundle_is_profiled(trained: Trained, bundle: Path, tmp_path: Path) -> None:
    from tests.published import write_drawn_samples

    data = str(write_drawn_samples(tmp_path / "data", 2))
    small = ("max_new_tokens=3", "repeats=1", "phase_samples=1")
    assert lrkit("profile", bundle, "--suite", "smoke", "--data", data, "-o", tmp_path / "profile", *small) == 0
