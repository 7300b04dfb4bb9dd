"""Checkpoints: what is saved is what is loaded, peft alone opens the adapter, and damage is said in a sentence."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import Qwen2VLForConditionalGeneration

from lrkit.checkpoints.checkpoint_folder import read_info
from lrkit.contract.settings import (
    DistillSettings,
    LoraSettings,
    ReasonerSettings,
    ReplaySettings,
    RoutingSettings,
    ThinkSettings,
)
from lrkit.errors import CheckpointError, FileError
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from lrkit.model.reasoner import LatentReasoner
from lrkit.resources import resolve_checkpoint
from tests.tiny import batch, prompt, tiny_reasoner

SETTINGS = ReasonerSettings(
    think=ThinkSettings(latent_scale="learned"),
    replay=ReplaySettings(num_tokens=3),
    distill=DistillSettings(weight=0.5, window=2),
    routing=RoutingSettings(depth=2, alpha=4),
    lora=LoraSettings(rank=4, alpha=8.0, dropout=0.0),
)


class Files:
    """Something that saves itself, in the place of a processor."""

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def loss_of(reasoner: LatentReasoner) -> torch.Tensor:
    made = batch([prompt(1), prompt(2)], num_latents=[2, 1], speech=[[9, 10, 1], [11, 1]])
    with torch.no_grad():
        return reasoner.eval()(made).total


def save_base(folder: Path) -> None:
    """The backbone that `tiny_reasoner` builds from seed 0."""
    save_checkpoint(folder, tiny_reasoner(SETTINGS, trainable="full"), Files(), None, {})


def save_adapter(folder: Path, base: Path) -> LatentReasoner:
    reasoner = tiny_reasoner(SETTINGS, trainable="lora")
    save_checkpoint(folder, reasoner, Files(), str(base), {"stage": {"name": "think"}})
    return reasoner


@pytest.fixture
def adapter(tmp_path) -> tuple[Path, LatentReasoner]:
    save_base(tmp_path / "base")
    return tmp_path / "adapter", save_adapter(tmp_path / "adapter", tmp_path / "base")


@pytest.mark.parametrize("tied", [True, False])
def test_a_full_checkpoint_gives_the_same_loss_bit_for_bit(tmp_path, tied):
    reasoner = tiny_reasoner(SETTINGS, trainable="full", tied=tied)
    save_checkpoint(tmp_path / "c", reasoner, Files(), None, {})
    assert torch.equal(loss_of(load_checkpoint(tmp_path / "c").reasoner), loss_of(reasoner))


def test_an_adapter_checkpoint_gives_the_same_loss_bit_for_bit(adapter):
    folder, reasoner = adapter
    loaded = load_checkpoint(folder)
    assert torch.equal(loss_of(loaded.reasoner), loss_of(reasoner))
    assert loaded.reasoner.settings == SETTINGS
    assert not any(p.requires_grad for p in loaded.reasoner.parameters())


def test_a_loaded_adapter_is_trained_on_and_the_backbone_is_not(adapter):
    loaded = load_checkpoint(adapter[0], trainable="lora").reasoner
    names = {name for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert any("lora_A" in name for name in names) and "latent.head_row_D" in names
    assert all("lora_" in name or not name.startswith("model.") for name in names)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's own
def test_an_adapter_opens_in_peft_alone(adapter, tmp_path):
    folder, reasoner = adapter
    base = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "base")
    plain = base(input_ids=torch.arange(8, 20)[None]).logits
    alone = PeftModel.from_pretrained(base, str(folder)).eval()
    ids = torch.arange(8, 20)[None]
    adapted = alone(input_ids=ids).logits
    assert not torch.allclose(adapted, plain, atol=1e-3)  # the adapter does something
    torch.testing.assert_close(adapted, reasoner.eval().model(input_ids=ids).logits)


def test_a_checkpoint_and_its_base_move_together(adapter, tmp_path):
    """The base is recorded relative to the checkpoint, so that a folder of both can be copied anywhere."""
    expected = loss_of(adapter[1])
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("adapter", "base"):
        (tmp_path / name).rename(moved / name)
    assert torch.equal(loss_of(load_checkpoint(moved / "adapter").reasoner), expected)


def test_new_settings_add_fresh_weights_and_keep_the_others(adapter):
    wider = SETTINGS.model_copy(update={"routing": RoutingSettings(depth=2, alpha=4, layers="all")})
    loaded = load_checkpoint(adapter[0], settings=wider).reasoner
    assert set(loaded.routers) == {"0", "1", "2", "3"}
    old = adapter[1].routers["1"].state_dict()
    assert all(torch.equal(value, old[name]) for name, value in loaded.routers["1"].state_dict().items())


def test_saving_again_replaces_the_whole_folder(adapter, tmp_path):
    folder, _ = adapter
    (folder / "leftover.txt").write_text("old")
    save_adapter(folder, tmp_path / "base")
    assert not (folder / "leftover.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_save_that_fails_leaves_the_old_checkpoint(adapter, tmp_path):
    class Full(Files):
        def save(self, folder: Path) -> None:
            raise OSError("no space left")

    folder, reasoner = adapter
    with pytest.raises(FileError, match="no space"):
        save_checkpoint(folder, reasoner, Full(), str(tmp_path / "base"), {})
    assert torch.equal(loss_of(load_checkpoint(folder).reasoner), loss_of(reasoner))


def test_a_missing_folder_and_a_folder_of_something_else_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="is not there"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no reasoner\.json"):
        load_checkpoint(tmp_path)


def test_another_schema_is_refused(adapter):
    info = read_info(adapter[0])
    (adapter[0] / "reasoner.json").write_text(json.dumps({**info, "schema": 99}))
    with pytest.raises(CheckpointError, match="has schema 99, this lrkit reads 1"):
        load_checkpoint(adapter[0])


def test_a_missing_base_says_where_it_should_be(adapter, tmp_path):
    (tmp_path / "base").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"needs the backbone in .*base, which is not there"):
        load_checkpoint(adapter[0])


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("lrkit.safetensors", "is no whole safetensors file"),
        ("adapter_model.safetensors", "adapter"),
        ("reasoner.json", "is not valid JSON"),
    ],
)
def test_a_cut_off_file_is_one_sentence(adapter, file, says):
    path = adapter[0] / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=says) as caught:
        load_checkpoint(adapter[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["lrkit.safetensors", "adapter_model.safetensors", "config.json"])
def test_a_missing_file_is_a_checkpoint_error(adapter, file):
    folder = adapter[0] if file != "config.json" else adapter[0].parent / "base"
    (folder / file).unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(adapter[0])


def test_extras_of_another_checkpoint_are_refused(adapter):
    info = read_info(adapter[0])
    info["settings"]["routing"]["layers"] = "all"
    (adapter[0] / "reasoner.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=r"does not fit the settings in reasoner\.json"):
        load_checkpoint(adapter[0])


@pytest.mark.parametrize("name", ["cot", "direct", "latent", "closer"])
def test_shipped_adapters_lead_to_the_shipped_base_alone(name):
    """They once led to the tree they were trained in: only that machine could open them."""
    tiny = resolve_checkpoint("tiny/base").parent
    info = read_info(tiny / name)
    where = [info["base"], json.loads((tiny / name / "adapter_config.json").read_text())["base_model_name_or_path"]]
    assert {(tiny / name / place).resolve() for place in where} == {(tiny / "base").resolve()}
    assert {mode: (tiny / name / place).resolve() for mode, place in info.get("baselines", {}).items()} == (
        {mode: (tiny / mode).resolve() for mode in ("cot", "direct")} if name == "latent" else {}
    )
