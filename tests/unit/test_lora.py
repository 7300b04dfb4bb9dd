"""LoRA: where it sits, that peft alone can open it, and that merging changes nothing."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel

from lrkit.errors import CheckpointError
from lrkit.model.lora import Adapter
from lrkit.model.reasoner import LatentReasoner
from tests.lab import rich_reasoner, run_steps, settings
from tests.tiny import EOS, IMAGE, Batch, batch, prompt, tiny_backbone

OPTIONS = {"replay": {"num_tokens": 3}, "routing": {"depth": 1, "alpha": 4}}


def training_batch() -> Batch:
    return batch([prompt(1), prompt(2)], num_latents=[2, 1], speech=[[9, 10, EOS], [11, EOS]])


@torch.no_grad()
def plain_logits(model: torch.nn.Module, made: Batch) -> torch.Tensor:
    kinds = (made.input_ids == IMAGE).int()
    return model(
        input_ids=made.input_ids,
        pixel_values=made.pixel_values,
        image_grid_thw=made.grids,
        mm_token_type_ids=kinds,
    ).logits


def test_lora_sits_on_the_language_model_alone() -> None:
    reasoner = rich_reasoner(settings(**OPTIONS))
    places = {name.split(".lora_")[0] for name, _ in reasoner.named_parameters() if "lora_" in name}
    kinds = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(places) == 4 * 7 and {place.rsplit(".", 1)[1] for place in places} == kinds
    assert all("language_model.layers" in place for place in places)


def test_a_new_adapter_changes_nothing_and_trains_beside_the_extras() -> None:
    """The release's LoRA wrapper freezes the router."""
    reasoner = rich_reasoner(settings(**OPTIONS, distill={"weight": 1.0}))
    trained = {name for name, p in reasoner.named_parameters() if p.requires_grad}
    extras = {"routers.1.router.weight", "routers.1.step_encoding_RD", "token_sr.map.weight", "latent.head_row_D"}
    assert extras <= trained
    assert all("lora_" in name or not name.startswith("model.") for name in trained)
    backbone, made = tiny_backbone(), training_batch()
    before = plain_logits(backbone.model, made)
    Adapter.create(backbone, reasoner.settings.lora)
    assert torch.equal(plain_logits(backbone.model, made), before)


def saved(tmp_path: Path) -> tuple[LatentReasoner, Path]:
    reasoner = rich_reasoner(settings(**OPTIONS))
    assert reasoner.adapter is not None
    reasoner.adapter.save(tmp_path, base="somewhere/base")
    return reasoner, tmp_path


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_saved_adapter_opens_in_peft_alone(tmp_path: Path) -> None:
    reasoner, folder = saved(tmp_path)
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    bare = tiny_backbone().model
    with torch.no_grad():  # the biases and norms that rich_reasoner moved belong to the base
        own = {n.replace(".base_layer", ""): p for n, p in reasoner.model.named_parameters() if "lora_" not in n}
        for name, parameter in bare.named_parameters():
            parameter.copy_(own[name])
    opened = PeftModel.from_pretrained(bare, str(folder)).eval()
    made = training_batch()
    assert torch.equal(plain_logits(opened, made), plain_logits(reasoner.model, made))


def test_the_card_of_peft_is_kept_without_the_place_of_the_base_on_this_machine(tmp_path: Path) -> None:
    """It was deleted once, with the tags that adapters are found by."""
    reasoner, _ = saved(tmp_path)
    assert reasoner.adapter is not None
    reasoner.adapter.save(tmp_path / "own", "../base")
    data = ModelCard.load(tmp_path / "own" / "README.md").data.to_dict()
    assert data["library_name"] == "peft" and "lora" in data["tags"]
    assert "base_model" not in data and not any(tag.startswith("base_model:") for tag in data["tags"])
    reasoner.adapter.save(tmp_path / "hub", "owner/base")
    data = ModelCard.load(tmp_path / "hub" / "README.md").data.to_dict()
    assert data["base_model"] == "owner/base" and "base_model:adapter:owner/base" in data["tags"]


@torch.no_grad()
def test_a_loaded_adapter_gives_the_same_run(tmp_path: Path) -> None:
    reasoner, folder = saved(tmp_path)
    other = rich_reasoner(settings(**OPTIONS), trainable="none")
    adapter = Adapter.load(other.backbone, folder, reasoner.settings.lora)
    assert adapter.parameters() and all(p.requires_grad for p in adapter.parameters())
    for name, parameter in reasoner.model.named_parameters():
        dict(other.model.named_parameters())[name].copy_(parameter)
    for name, parameter in reasoner.extra_parameters().items():
        other.extra_parameters()[name].copy_(parameter)
    made = training_batch()
    assert torch.equal(run_steps(other.eval(), made).speech_BSW, run_steps(reasoner, made).speech_BSW)


@torch.no_grad()
def test_merging_gives_the_outputs_of_the_unmerged_model() -> None:
    reasoner, made = rich_reasoner(settings(**OPTIONS)), training_batch()
    before = run_steps(reasoner, made).speech_BSW
    reasoner.merge_adapter()
    assert not any("lora_" in name for name, _ in reasoner.named_parameters())
    torch.testing.assert_close(run_steps(reasoner, made).speech_BSW, before, rtol=1e-5, atol=1e-5)


def test_a_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors"):
        Adapter.load(tiny_backbone(), tmp_path, settings().lora)


def test_an_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    reasoner, folder = saved(tmp_path)
    lora = reasoner.settings.lora
    with pytest.raises(CheckpointError, match="does not fit"):
        Adapter.load(tiny_backbone(layers=3), folder, lora)
    with pytest.raises(CheckpointError, match="does not fit"):
        Adapter.load(tiny_backbone(width=64), folder, lora)
    with pytest.raises(CheckpointError, match="does not fit"):
        Adapter.load(tiny_backbone(), folder, lora.model_copy(update={"rank": 2}))
