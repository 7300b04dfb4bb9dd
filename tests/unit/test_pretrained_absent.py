"""A pretrained model that is not on this machine: one sentence names it, the folder that was searched, and the files to
put there by hand.

Once `lrkit ask Qwen/Qwen2.5-VL-3B-Instruct` said "no such checkpoint; give a folder that `lrkit train` wrote", validate
"there is no such file", and a base of the hub named neither a folder nor a file.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lrkit.checkpoints.hub import hub_folder
from lrkit.errors import CheckpointError, MissingExtraError
from lrkit.pretrained import MODEL_FILES, hub_id_in, is_hub_id
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.sdk import Reasoner
from tests.commands import lrkit

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, without a model and without a network."""
    import huggingface_hub.constants as constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "words",
    [
        ("ask", MODEL, "Where?"), ("eval", MODEL), ("export", MODEL, "-o", "bundle"), ("validate", MODEL),
        ("validate", "--quick", "meta/chameleon-7b"), ("profile", MODEL), ("preflight", MODEL),
        ("train", "smoke", f"init={MODEL}"), ("train", "smoke", f"init={MODEL}", "--dry-run"),
        ("sweep", MODEL, "threads=1,2"), ("train", "smoke", f"baselines.cot={MODEL}", "--dry-run"),
        ("ask", f"hub:{MODEL}", "Where?"),
    ],
)  # fmt: skip
def test_every_verb_says_where_it_looked_and_what_belongs_there(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = next(word for word in words if "/" in word).rpartition("=")[2]
    assert lrkit(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert asked in line and str(tmp_path / asked.removeprefix("hub:")) in line and MODEL_FILES in line


def test_a_recipe_that_may_fetch_says_both_places_when_it_cannot(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lrkit("train", "smoke", f"init=hub:{MODEL}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert MODEL in line and str(empty_cache / "models--Qwen--Qwen2.5-VL-3B-Instruct") in line and MODEL_FILES in line


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The shipped adapter, whose base is a model of the hub."""
    folder = tmp_path / "own" / "cot"
    shutil.copytree(resolve_checkpoint("tiny/cot"), folder)
    info = json.loads((folder / "reasoner.json").read_text())
    (folder / "reasoner.json").write_text(json.dumps({**info, "base": MODEL}))
    return folder


def test_the_base_of_an_adapter(adapter: Path, empty_cache: Path) -> None:
    for load in (Reasoner.from_checkpoint, Reasoner.open):
        with pytest.raises(CheckpointError) as caught:
            load(adapter)
        searched = (empty_cache / "models--Qwen--Qwen2.5-VL-3B-Instruct", adapter / MODEL)
        for part in (MODEL, *map(str, searched), MODEL_FILES):
            assert part in str(caught.value)
    with pytest.raises(CheckpointError, match="can it be downloaded"):
        Reasoner.from_checkpoint(adapter, allow_download=True)


def test_a_copy_that_was_put_there_by_hand_is_found(adapter: Path) -> None:
    shutil.copytree(resolve_checkpoint("tiny/base"), adapter / MODEL)
    assert Reasoner.from_checkpoint(adapter).engine.modes


def test_without_the_hubs_package_the_model_is_what_is_missing(monkeypatch: pytest.MonkeyPatch, adapter: Path) -> None:
    def missing(module: str, extra: str) -> None:
        raise MissingExtraError(f"{module} is not installed")

    monkeypatch.setattr("lrkit.checkpoints.hub.require", missing)
    with pytest.raises(CheckpointError, match=f"^{MODEL} is a model of the hub that is not on this machine"):
        Reasoner.from_checkpoint(adapter)
    with pytest.raises(MissingExtraError):
        hub_folder(MODEL, download=True)


def _without_shard(base: Path) -> str:
    held = json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})
    (base / "model.safetensors.index.json").write_text(held)
    (base / "model.safetensors").unlink()
    return r"model-00001-of-00002\.safetensors is not there, and model\.safetensors\.index\.json names it"


def _pointer(base: Path) -> str:
    (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    return "is a pointer of Git LFS"


def _without(name: str, says: str) -> Callable[[Path], str]:
    def remove(base: Path) -> str:
        (base / name).unlink()
        return says

    return remove


@pytest.mark.parametrize(
    "damage",
    [
        _without("model.safetensors", r"has no model\.safetensors and no model\.safetensors\.index\.json; put its"),
        _without("config.json", r"is no checkpoint: it has neither.*put its files into .*plain by hand: config\.json"),
        _without("tokenizer.json", r"has no tokenizer\.json, nor vocab\.json and merges\.txt; put the model"),
        _without_shard, _pointer,
    ],
)  # fmt: skip
def test_a_folder_that_lacks_a_part(damage: Callable[[Path], str], tmp_path: Path) -> None:
    base = tmp_path / "plain"
    shutil.copytree(resolve_checkpoint("tiny/base"), base)
    (base / "reasoner.json").unlink()
    (base / "lrkit.safetensors").unlink()
    says = damage(base)
    with pytest.raises(CheckpointError, match=says):
        Reasoner.from_checkpoint(base)


def test_what_a_hub_id_is() -> None:
    assert is_hub_id(MODEL) and hub_id_in(f"hub:{MODEL}") == hub_id_in(MODEL) == MODEL
    for other in ("tiny", "a/b/c", "../b", "/abs/model", "hub:", "hub:a", "a b/c"):
        assert hub_id_in(other) is None
