"""A checkpoint may hold weights of its own in place of its base's, such as the first matrix of the tower."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lrkit.checkpoints.checkpoint_folder import EXTRAS_FILE, OWN_BACKBONE
from lrkit.checkpoints.whole_weights import check_weights
from lrkit.errors import CheckpointError
from lrkit.export.weights.source import read_source
from lrkit.export.weights.streaming import stream_source
from lrkit.model.checkpoint import copy_checkpoint, load_checkpoint, save_checkpoint
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import Processor

CLOSER, BASE = resolve_checkpoint("tiny/closer"), resolve_checkpoint("tiny/base")
MATRIX = "model.visual.patch_embed.proj.weight"


def matrix_of(folder: Path) -> torch.Tensor:
    return load_checkpoint(folder).reasoner.model.get_parameter(MATRIX)


def test_torch_and_an_export_read_it_and_the_base_stays() -> None:
    own = torch.from_numpy(load_file(CLOSER / EXTRAS_FILE)[OWN_BACKBONE + MATRIX])
    assert torch.equal(matrix_of(CLOSER), own) and not torch.equal(matrix_of(BASE), own)
    loaded = read_source(load_checkpoint(CLOSER, dtype=torch.float32).reasoner).tower.state_dict()
    streamed = stream_source(CLOSER).tower.state_dict()
    assert torch.equal(loaded["patch_embed.proj.weight"], own)
    assert all(torch.equal(streamed[name], value) for name, value in loaded.items())


def test_what_is_trained_from_it_keeps_it(tmp_path: Path) -> None:
    """Once with an adapter, on the same base; once whole, where it is one weight among the others."""
    processor = Processor.from_folder(CLOSER)
    start = load_checkpoint(CLOSER, trainable="lora", settings=check_weights(CLOSER).settings)
    assert not start.reasoner.model.get_parameter(MATRIX).requires_grad
    save_checkpoint(tmp_path / "adapter", start.reasoner, processor, start.base, {})
    merged = load_checkpoint(CLOSER).reasoner
    merged.merge_adapter()
    save_checkpoint(tmp_path / "whole", merged, processor, None, {})
    copy_checkpoint(CLOSER, tmp_path / "copy")
    for name in ("adapter", "whole", "copy"):
        assert torch.equal(matrix_of(tmp_path / name), matrix_of(CLOSER)), name
    kept = {name: list(check_weights(tmp_path / name).replaced) for name in ("adapter", "whole", "copy")}
    assert kept == {"adapter": [MATRIX], "whole": [], "copy": [MATRIX]}


ODD: dict[str, tuple[str, Any, str]] = {
    "a name of no weight": ("model.visual.patch.weight", np.zeros(3, np.float32), "has no place for"),
    "no name": ("", np.zeros(3, np.float32), "has no place for"),
    "another shape": (MATRIX, np.zeros((64, 3), np.float32), "has shape"),
    "whole numbers": (MATRIX, np.zeros((64, 3, 2, 8, 8), np.int8), "not quantized"),
    "no number": (MATRIX, np.full((64, 3, 2, 8, 8), np.nan, np.float32), "NaN"),
    "a matrix with an adapter": (
        "model.language_model.layers.0.mlp.up_proj.weight", np.zeros((384, 128), np.float32), "LoRA adapts"
    ),
    "its bias": ("model.language_model.layers.0.self_attn.q_proj.bias", np.zeros(128, np.float32), "LoRA adapts"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_what_does_not_fit_the_base_is_one_sentence(name: str, tmp_path: Path) -> None:
    copy_checkpoint(CLOSER, tmp_path / "c")
    file, (weight, values, said) = tmp_path / "c" / EXTRAS_FILE, ODD[name]
    save_file({**load_file(file), OWN_BACKBONE + weight: values}, file)
    for read in (load_checkpoint, stream_source):
        with pytest.raises(CheckpointError, match=said) as caught:
            read(tmp_path / "c")
        assert "\n" not in str(caught.value)
