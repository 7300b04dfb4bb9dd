"""What of a folder is published: weights as safetensors and what belongs to them; no pickle, nothing of a training."""

import json
import shutil
from pathlib import Path

import pytest

from lrkit.errors import BundleError, CheckpointError, UserError
from lrkit.publish.published_files import GENERATE_FILE, PICKLES, parts_of
from lrkit.resources import resolve_checkpoint
from tests.published_folders import STRAY, adapter, change, with_strays


def test_an_adapter_goes_with_its_files_and_nothing_of_the_training(tmp_path: Path) -> None:
    parts = parts_of(with_strays(adapter(tmp_path / "c")))
    assert parts.kind == "checkpoint" and {left.name: left.why for left in parts.left} == STRAY
    assert parts.names == {
        "adapter_config.json", "adapter_model.safetensors", "config.json", "lrkit.safetensors", "reasoner.json",
        "prompt.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", GENERATE_FILE,
    }  # fmt: skip
    assert not any(name.endswith(PICKLES) for name in parts.names)


def test_baselines_stay_as_they_are_folders_beside_it(tmp_path: Path) -> None:
    (part,) = [part for part in parts_of(adapter(tmp_path / "c")).sent if part.name == "reasoner.json"]
    assert isinstance(part.content, bytes) and part.num_bytes == len(part.content)
    told = json.loads(part.content)
    assert "baselines" not in told and told["base"] == "owner/base" and told["latent_id"] == 5


def test_a_model_with_its_own_weights_goes_whole() -> None:
    parts = parts_of(resolve_checkpoint("tiny/base"))
    assert {"model.safetensors", "generation_config.json"} <= parts.names and parts.left == ()


def test_weights_in_a_folder_that_nobody_else_has_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a folder that nobody else has; add --merge"):
        parts_of(resolve_checkpoint("tiny"))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(resolve_checkpoint("tiny/base"), tmp_path / "c")
    (tmp_path / "c" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        parts_of(tmp_path / "c")


def test_weights_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    (adapter(tmp_path / "c") / "language.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"only safetensors are published"):
        parts_of(tmp_path / "c")


def test_what_is_neither_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is neither a checkpoint nor a bundle; give what `lrkit train`"):
        parts_of(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is no folder; give"):
        parts_of(tmp_path / "nowhere")


def test_a_bundle_goes_as_it_lists_itself(own_bundle: Path) -> None:
    (own_bundle / "report.json").write_text("{}")
    (own_bundle / "state.pt").write_text("secret")
    parts = parts_of(own_bundle)
    listed = json.loads((own_bundle / "bundle.json").read_text())["files"]
    assert parts.kind == "bundle" and parts.names == {"bundle.json", *listed}
    assert {left.name: left.why for left in parts.left} == {
        "report.json": "the card is written from it", "state.pt": "training state, a pickle"
    }  # fmt: skip


def test_a_bundle_that_lists_a_pickle_is_refused(own_bundle: Path) -> None:
    (own_bundle / "extra.pt").write_bytes(b"x")
    manifest = json.loads((own_bundle / "bundle.json").read_text())
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    change(own_bundle / "bundle.json", files={**manifest["files"], "extra.pt": {"sha256": digest, "bytes": 1}})
    with pytest.raises(BundleError, match=r"lists extra\.pt, and pickles are never published"):
        parts_of(own_bundle)
