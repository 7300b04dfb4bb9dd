"""Weights read from a checkpoint's files one by one are those of the loaded model, adapter and trained rows too."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lrkit.errors import CheckpointError
from lrkit.export.weights.source import Source, read_source
from lrkit.export.weights.streaming import stream_source
from lrkit.model.checkpoint import load_checkpoint, save_checkpoint
from tests.bundles import processor
from tests.lab import settings
from tests.tiny import tiny_reasoner

PARTS = ("qkv", "qkv.bias", "out", "gate_up", "down", "norm1", "norm2")
CHOSEN = settings(routing={"depth": 1, "alpha": 8}, replay={"num_tokens": 4})


def checkpoint(folder, tied=True):
    """A base with its weights beside it, and an adapter trained on it."""
    save_checkpoint(folder / "base", tiny_reasoner(CHOSEN, tied=tied), processor(), base=None, info={})
    adapted = tiny_reasoner(CHOSEN, trainable="lora", tied=tied)
    with torch.no_grad():
        adapted.latent.head_row_D.add_(0.25)
        adapted.latent.embedding_row_D.add_(0.5)
    save_checkpoint(folder / "adapted", adapted, processor(), base=str(folder / "base"), info={})
    return folder / "adapted"


def loaded(folder) -> Source:
    return read_source(load_checkpoint(folder, dtype=torch.float32).reasoner)


def assert_same(streamed: Source, expected: Source) -> None:
    roles = ["embedding", "head", "norm", *[f"{layer}.{part}" for layer in range(4) for part in PARTS]]
    for role in [*roles, *expected.extras]:
        np.testing.assert_array_equal(streamed.weight(role), expected.weight(role), err_msg=role)
    assert streamed.extras.keys() == expected.extras.keys() != set()
    tower, original = streamed.tower.state_dict(), expected.tower.state_dict()
    assert tower.keys() == original.keys()
    assert all(torch.equal(tower[name], original[name]) for name in original)
    for name in (
        "family",
        "dimensions",
        "settings",
        "image_id",
        "latent_id",
        "latent_norm",
        "tied",
    ):
        assert getattr(streamed, name) == getattr(expected, name), name


@pytest.mark.parametrize("tied", [True, False])
def test_streamed_weights_are_the_loaded_ones(tmp_path, tied):
    folder = checkpoint(tmp_path, tied)
    expected = loaded(folder)
    assert_same(stream_source(folder), expected)
    plain = loaded(tmp_path / "base")
    assert_same(stream_source(tmp_path / "base"), plain)
    assert np.abs(plain.weight("1.down") - expected.weight("1.down")).max() > 1e-3, "the adapter changes nothing"
    assert np.abs(plain.weight("head") - expected.weight("head")).max() > 0.2, "the trained row is not in it"


def test_shards_and_half_precision_are_read(tmp_path):
    folder = checkpoint(tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    names = sorted(halves)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: halves[name] for name in members}, tmp_path / "base" / shard, {"format": "pt"})
    where = {name: shard for shard, members in shards.items() for name in members}
    index = {"metadata": {}, "weight_map": where}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    assert_same(stream_source(folder), loaded(folder))


@pytest.mark.parametrize(
    "option", [{"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"bias": "all"}]
)
def test_adapters_beyond_plain_lora_are_refused_by_export_and_by_loading(tmp_path, option):
    folder = checkpoint(tmp_path)
    change_adapter(folder, **option)
    for read in (stream_source, loaded):
        with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {next(iter(option))} is"):
            read(folder)


def test_an_adapter_of_another_backbone_is_one_sentence(tmp_path):
    folder = checkpoint(tmp_path)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors = {name.replace("layers.3.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"does not fit its backbone: lacks .*layers\.3\."):
        stream_source(folder)


def test_a_file_without_a_weight_is_one_sentence(tmp_path):
    folder = checkpoint(tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "layers.2.mlp.up_proj" not in name}
    save_file(tensors, file, {"format": "pt"})
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model\.language_model\.layers\.2\.mlp\.up_proj\.weight"):
        stream_source(folder)


def change_adapter(folder, **options) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **options}))
