"""Qwen2-VL's config.json as lrkit reads it, and the weights that follow from it. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from lrkit.families.common import mrope_layout
from lrkit.families.common.config_values import LAYERS, SIZE
from lrkit.families.common.mrope_layout import TOWER
from lrkit.families.layout import Layout, Shape


class _Vision(mrope_layout.Tower):
    """The vision tower."""

    depth: int = LAYERS
    embed_dim: int = SIZE
    hidden_size: int = SIZE
    num_heads: int = SIZE
    mlp_ratio: int = Field(default=4, ge=1, le=64)
    hidden_act: Literal["quick_gelu"] = "quick_gelu"


def read_qwen2_vl(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe, flat as published or with a text_config as transformers 5 writes
    it. `label` names the file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    read = mrope_layout.read_parts(values, _Vision, label)
    vision = read.vision
    mrope_layout.refuse(mrope_layout.contradictions(read.text, read.outer), label)
    sizes = vision.embed_dim, vision.num_heads, vision.hidden_size
    mrope_layout.refuse(mrope_layout.tower_contradictions(*sizes, read.text), label)
    return read.layout(
        "qwen2_vl",
        gguf=mrope_layout.GGUF_DECODERS,
        tower=dict(_tower(vision)),
        config=read.for_transformers("Qwen2VLForConditionalGeneration", vision.model_dump(exclude_none=True)),
    )


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    width, inner = vision.embed_dim, vision.embed_dim * vision.mlp_ratio
    merged = width * vision.spatial_merge_size**2
    side = vision.patch_size
    yield f"{TOWER}.patch_embed.proj.weight", (width, 3, vision.temporal_patch_size, side, side)
    matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (inner, width)}
    matrices["mlp.fc2"] = (width, inner)
    for layer in range(vision.depth):
        for name, shape in matrices.items():
            yield f"{TOWER}.blocks.{layer}.{name}.weight", shape
            yield f"{TOWER}.blocks.{layer}.{name}.bias", shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            yield f"{TOWER}.blocks.{layer}.{name}", (width,)
    for name, shape in (("mlp.0", (merged, merged)), ("mlp.2", (vision.hidden_size, merged))):
        yield f"{TOWER}.merger.{name}.weight", shape
        yield f"{TOWER}.merger.{name}.bias", shape[:1]
    yield f"{TOWER}.merger.ln_q.weight", (width,)
    yield f"{TOWER}.merger.ln_q.bias", (width,)


PART = read_qwen2_vl
