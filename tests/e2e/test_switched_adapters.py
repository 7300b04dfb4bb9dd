"""One program, several adapters: each answers as its own checkpoint does, and what does not fit is one sentence."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrkit import Reasoner
from lrkit.contract.bundle.bundle_folder import Bundle, open_bundle, write_manifest
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.trail import trail_set
from lrkit.errors import BundleError, ExportError, UserError
from lrkit.export.bundle import export_bundle
from lrkit.export.subject import CheckpointSubject
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.checks.bundle_check import check_bundle
from tests.bundles import MAX_NEW_TOKENS, QUESTION, SETTINGS, TARGET, picture, processor
from tests.commands import lrkit
from tests.tiny import tiny_reasoner

SAMPLES = trail_set("main", "test", 2)


def trained(folder: Path, name: str, rank: int, seed: int, base: str = "base", **changes: Any) -> CheckpointSubject:
    """A checkpoint over `base` whose adapter, router and latent row are its own."""
    values = {**SETTINGS["latent"].model_dump(), "lora": {"rank": rank, "alpha": 2.0 * rank}, **changes}
    reasoner = tiny_reasoner(ReasonerSettings.model_validate(values), trainable="lora")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part, weight in reasoner.named_parameters():
            if "lora_B" in part or "router" in part or part == "latent.head_row_D":
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    save_checkpoint(folder / name, reasoner, processor(), base=str(folder / base), info={})
    return CheckpointSubject(folder / name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, and over it the checkpoints own, near and far (of another rank)."""
    folder = tmp_path_factory.mktemp("adapters")
    save_checkpoint(folder / "base", tiny_reasoner(SETTINGS["latent"]), processor(), base=None, info={})
    for i, (name, rank) in enumerate({"own": 4, "near": 4, "far": 6}.items()):
        trained(folder, name, rank, rank + i)
    return folder


@pytest.fixture(scope="module")
def switched(home: Path) -> Path:
    """The bundle of own with the other two."""
    others = {name: CheckpointSubject(home / name) for name in ("near", "far")}
    return export_bundle(home / "own", home / "bundle", TARGET, SAMPLES, with_adapters=others).folder


@pytest.mark.long
def test_every_adapter_answers_as_its_own_checkpoint(switched: Path, home: Path) -> None:
    reasoner = Reasoner.load(switched)
    asked: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS}
    said: set[str] = set()
    for name, adapter in {"own": None, "near": "near", "far": "far", "own again": None}.items():
        torch_said = Reasoner.from_checkpoint(home / name.split()[0]).ask(picture(), QUESTION, **asked)
        found = reasoner.ask(picture(), QUESTION, adapter=adapter, **asked)
        assert (found.text, found.latent_steps) == (torch_said.text, torch_said.latent_steps)
        said.add(found.text)
    assert len(said) == 3, "the adapters say the same, so this shows nothing"
    pair = reasoner.ask_batch([(picture(), QUESTION)], adapter="far", **asked)
    assert pair[0].text == reasoner.with_adapter("far").look(picture()).ask(QUESTION, **asked).text
    assert reasoner.engine.digest != reasoner.with_adapter("far").engine.digest, "a look of one is none of the other"


@pytest.mark.long
def test_each_was_held_against_torch_and_the_bundle_lists_them(switched: Path) -> None:
    manifest = open_bundle(switched).manifest
    entry = manifest.programs["latent"]
    assert (entry.adapter, {name: one.rank for name, one in entry.adapters.items()}) == ("keep", {"near": 4, "far": 6})
    assert {one.file for one in entry.adapters.values()} <= set(manifest.files)
    assert {name: one.passed for name, one in manifest.adapter_validation.items()} == {"near": True, "far": True}
    assert all(float(str(one.measured["latent_states"])) < 1e-5 for one in manifest.adapter_validation.values())
    report = check_bundle(switched)
    assert report.problems == [] and report.same == report.samples > 0


@pytest.mark.long
def test_what_cannot_be_asked_is_one_sentence(
    switched: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture().save(tmp_path / "rooms.png")
    asked = ["ask", str(switched), "--image", str(tmp_path / "rooms.png"), QUESTION]
    assert lrkit(*[*asked, "--adapter", "far", "--max-new-tokens", "3"]) == 0
    assert lrkit(*[*asked, "--adapter", "fra"]) == 2
    assert "no adapter 'fra', its latent program has near, far" in capsys.readouterr().err
    with pytest.raises(UserError, match="adapters are switched in bundles, and this is a checkpoint"):
        Reasoner.from_checkpoint(home / "own").with_adapter("near")


@pytest.mark.long
def test_a_damaged_adapter_or_another_programs_is_refused(switched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(switched, folder)
    bundle = open_bundle(folder)
    (folder / "latent.near.onnx_adapter").write_bytes(b"nothing of that kind" * 10)
    with pytest.raises(BundleError, match=r"latent\.near"):
        open_bundle(folder)
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        Reasoner.load(resized(bundle, len(b"nothing of that kind" * 10)), verify=False).with_adapter("near").prepare()


def resized(bundle: Bundle, size: int) -> Path:
    """The same bundle, in whose list the adapter near has that size."""
    files = dict(bundle.manifest.files)
    file = "latent.near.onnx_adapter"
    files[file] = files[file].model_copy(update={"bytes": size})
    return write_manifest(bundle, bundle.manifest.model_copy(update={"files": files})).folder


FITS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "other settings": (
        lambda home: {"odd": trained(home, "odd", 4, 9, replay={"num_tokens": 2})},
        "the adapter odd was trained with replay.num_tokens 2, the program has 4",
    ),
    "no adapter": (lambda home: {"odd": CheckpointSubject(home / "base")}, "base has no adapter, and adapters are to"),
    "another base": (
        lambda home: {"odd": other_base(home)},
        "the adapter odd has another base than own",
    ),
    "a name that is none": (
        lambda home: {"../odd": CheckpointSubject(home / "near")},
        "--with-adapter names an adapter '../odd'; use letters",
    ),
}


def other_base(home: Path) -> CheckpointSubject:
    reasoner = tiny_reasoner(SETTINGS["latent"], seed=5)
    save_checkpoint(home / "other", reasoner, processor(), base=None, info={})
    return trained(home, "astray", 4, 9, base="other")


@pytest.mark.parametrize("name", FITS)
def test_what_cannot_share_a_program_is_refused_before_anything_is_written(name: str, home: Path) -> None:
    make, said = FITS[name]
    with pytest.raises((ExportError, UserError), match=said):
        export_bundle(
            CheckpointSubject(home / "own"), home / "refused", TARGET, SAMPLES, with_adapters=make(home)
        )  # fmt: skip
    assert not (home / "refused").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--adapter", "merge"], "--with-adapter switches adapters, and --adapter merge leaves none; give"),
        (["--form", "step"], "--with-adapter is for a program in the dialect ort on a CPU"),
        (["--target", "cuda-fp16"], "--with-adapter is for a program in the dialect ort on a CPU"),
        (["--with-adapter", "near=elsewhere"], "--with-adapter 'near=elsewhere' names an adapter twice"),
        (["--with-adapter", "far"], "--with-adapter 'far' is no NAME=CHECKPOINT"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    options: list[str], said: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", str(home / "own"), "--dry-run", "--samples", "1", "--with-adapter", f"near={home / 'near'}"]
    assert lrkit(*[*given, *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_without_an_adapter_has_none_to_keep(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lrkit(*["export", str(home / "base"), "--adapter", "keep", "--dry-run", "--samples", "1"]) == 2
    assert "adapter is keep, and the checkpoint has weights of its own and no adapter" in capsys.readouterr().err
    assert lrkit(*["export", str(home / "own"), "--adapter", "kept", "--dry-run"]) == 2
    assert "--adapter is 'kept'; it must be one of merge, keep" in capsys.readouterr().err
