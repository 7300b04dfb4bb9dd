"""A tower that chooses words, where the program and torch do not choose the same.

The tale behind: ONNX Runtime's convolutions round otherwise than torch's. Of 1,024 codes of a picture one was another,
so a right program had logits 1e-3 off, and its export was refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.bundle.manifest import Role
from lrkit.contract.schemes import SCHEMES
from lrkit.errors import ExportError
from lrkit.export.bundle import export_bundle
from lrkit.export.check_verdict import Found, judge
from lrkit.export.subject import Origin
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.encode.processor import Processor
from tests.conftest import MadeOnce
from tests.families.conftest import written
from tests.families.published_chameleon import CASE
from tests.families.reasoners import rich_reasoner, settings_of, unlike_samples
from tests.families.rounded import RoundedOrigin, RoundedSubject
from tests.families.test_program import Trained

PICTURE = 16
"""Visual tokens of a picture."""


@dataclass(frozen=True)
class OtherCodes(RoundedOrigin):
    """Torch's side has some codes where no picture is near, so that it chooses others in their place."""

    moved: Sequence[int] = ()

    def reasoner(self) -> LatentReasoner:
        held = super().reasoner()
        tower: Any = held.model.get_submodule("model.vqmodel")
        with torch.no_grad():
            tower.quantize.embedding.weight[list(self.moved)] += 1e3
        return held


class Apart(RoundedSubject):
    """A checkpoint whose program chooses otherwise than torch wherever it chooses one of the codes `moved`."""

    moved: Sequence[int] = ()

    def origins(self, baselines: bool) -> dict[Role, Origin]:
        found: dict[Role, Any] = super().origins(baselines)
        return {role: OtherCodes(origin.stored, self.target, self.moved) for role, origin in found.items()}


@pytest.fixture(scope="module")
def trained(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = written(CASE, "small pictures", made_once)
    place, processor = tmp_path_factory.mktemp("chosen") / "checkpoint", Processor.from_folder(folder)
    settings = settings_of(CASE, distill={"weight": 0.0}, routing={"depth": 1, "alpha": 6})
    reasoner = rich_reasoner(folder, settings, processor, "lora")
    save_checkpoint(place, reasoner, processor, base=str(folder), info={"stage": "drawn"})
    return Trained(CASE, place, processor, unlike_samples(CASE))


@pytest.fixture(scope="module")
def seen(trained: Trained) -> list[np.ndarray]:
    """Codes of each picture of the samples."""
    backbone: Any = load_checkpoint(trained.folder, dtype=torch.float32).reasoner.backbone
    codes = backbone.decoder.vocabulary_mapping.bpe2img
    prompts = [trained.processor.encode_prompt(one.images, one.question) for one in trained.samples]
    found: list[np.ndarray] = []
    for prompt in prompts:
        if prompt.pixel_values is not None:
            ids = backbone.choose_tokens(torch.from_numpy(prompt.pixel_values), torch.tensor(prompt.grids))
            found += [np.array([codes[i] for i in part]) for part in ids.view(-1, PICTURE).tolist()]
    return found


def export(trained: Trained, moved: Sequence[int], place: Path, way: tuple[str, str, Form]) -> dict[str, Any]:
    precision, dialect, form = way
    target = trained.target(precision, dialect)
    subject = Apart(trained.folder, target)
    subject.moved = moved
    report = export_bundle(subject, place, target, trained.samples, form=form, allow_unproven=True)
    assert check_bundle(place).problems == [] and not list(place.glob("*chosen*"))
    return report.manifest.validation["latent"].model_dump()


WAYS: list[Any] = [
    ("fp32", "ort", "program"),
    *(pytest.param(way, marks=pytest.mark.slow) for way in (
        ("fp16", "ort", "program"), ("int4", "ort", "program"), ("int4", "standard", "step"),
        ("fp32", "standard", "program"), ("fp32", "ort", "step"),
    )),
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_all_behind_the_tower_is_compared_as_ever(
    trained: Trained, seen: list[np.ndarray], way: tuple[str, str, Form], tmp_path: Path
) -> None:
    """One token of a picture is another, and the numbers are as near as if none were."""
    most = {code: max(int((codes == code).sum()) for codes in seen) for code in np.unique(np.concatenate(seen))}
    moved = [int(code) for code, count in most.items() if count == 1][:1]
    otherwise = sum(int((codes == moved[0]).sum()) for codes in seen)
    found = export(trained, moved, tmp_path / "bundle", way)
    measured = found["measured"]
    assert measured["chosen_otherwise"] == {
        "tokens": otherwise, "of": PICTURE * len(seen), "worst_picture": 1 / PICTURE
    }  # fmt: skip
    assert found["tolerance"]["chosen_otherwise"] == 0.02 and "from the program's choices" in found["tolerance_reason"]
    assert max(measured["prefill_logits"], measured["latent_states"]) < (1e-4 if way[0] != "fp16" else 5e-2)
    if way[0] == "fp32":
        assert set(measured["agreement"].values()) == {1.0}


def test_a_tower_that_chooses_other_words_is_refused(trained: Trained, seen: list[np.ndarray], tmp_path: Path) -> None:
    moved = sorted({int(code) for code in seen[0]})
    with pytest.raises(
        ExportError, match=r"chooses 16 of the 16 visual tokens of a picture otherwise than torch"
    ) as said:
        export(trained, moved, tmp_path / "bundle", ("fp32", "ort", "program"))
    assert "\n" not in str(said.value) and "2%, or one, are allowed" in str(said.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("precision", SCHEMES)
@pytest.mark.parametrize(
    ("pictures", "passes"),
    [
        ([(0, 16)], True), ([(1, 16), (1, 1)], True), ([(20, 1024), (0, 1024)], True),
        ([(2, 16)], False), ([(0, 1024), (21, 1024)], False), ([(0, 1024)] * 99 + [(512, 1024)], False),
    ],
)  # fmt: skip
def test_each_picture_has_its_bound(pictures: list[tuple[int, int]], passes: bool, precision: str) -> None:
    found = Found(logits=[1e-6], same={"spoken tokens": 1}, num_samples=1, chosen=pictures)
    tolerance = SCHEMES[precision].tolerance
    if passes:
        measured = judge(found, tolerance, "latent").measured["chosen_otherwise"]
        assert isinstance(measured, dict) and measured["tokens"] == sum(count for count, _ in pictures)
        return
    with pytest.raises(ExportError, match=r"visual tokens of a picture otherwise than torch"):
        judge(found, tolerance, "latent", allow_unproven=True)


def test_other_faults_say_how_many_words_are_others() -> None:
    found = Found(logits=[0.3], same={"spoken tokens": 1}, num_samples=1, chosen=[(3, 1024)])
    with pytest.raises(ExportError, match=r"3 of 1024 visual tokens chosen otherwise"):
        judge(found, SCHEMES["fp32"].tolerance, "latent")


def test_towers_that_choose_nothing_say_nothing() -> None:
    found = judge(Found(logits=[0.0], same={"spoken tokens": 1}, num_samples=1), SCHEMES["fp32"].tolerance, "latent")
    assert "chosen_otherwise" not in found.measured and "chosen_otherwise" not in found.tolerance
    assert found.tolerance_reason == SCHEMES["fp32"].tolerance.reason
