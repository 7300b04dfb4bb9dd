"""Qwen2.5-VL's config.json as lrkit reads it, and the weights that follow from it. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from lrkit.families.common import mrope_layout
from lrkit.families.common.config_values import LAYERS, SIZE
from lrkit.families.common.mrope_layout import TOWER
from lrkit.families.layout import Layout, Shape


class _Vision(mrope_layout.Tower):
    """The vision tower. What config.json leaves out is as in transformers."""

    depth: int = LAYERS
    hidden_size: int = SIZE
    intermediate_size: int = SIZE
    out_hidden_size: int = SIZE
    num_heads: int = SIZE
    hidden_act: Literal["silu"] = "silu"
    window_size: int = Field(default=112, ge=1, le=1 << 20)
    """Side of a window in pixels."""
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    """Layers that attend to the whole picture."""
    tokens_per_second: int = Field(default=4, ge=1, le=1 << 20)
    """Concerns videos."""


def read_qwen2_5_vl(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe, flat as published or with a text_config as transformers 5 writes
    it. `label` names the file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    read = mrope_layout.read_parts(values, _Vision, label)
    vision = read.vision
    mrope_layout.refuse(mrope_layout.contradictions(read.text, read.outer), label)
    sizes = vision.hidden_size, vision.num_heads, vision.out_hidden_size
    mrope_layout.refuse(mrope_layout.tower_contradictions(*sizes, read.text), label)
    mrope_layout.refuse(_contradictions(vision), label)
    given = vision.model_dump(exclude_none=True) | {"fullatt_block_indexes": list(vision.fullatt_block_indexes)}
    return read.layout(
        "qwen2_5_vl",
        gguf=mrope_layout.GGUF_DECODERS,
        tower=dict(_tower(vision)),
        config=read.for_transformers("Qwen2_5_VLForConditionalGeneration", given),
        window_size=vision.window_size,
    )


def _contradictions(vision: _Vision) -> Iterator[str]:
    square = vision.patch_size * vision.spatial_merge_size
    if vision.window_size < square:
        yield f"window_size {vision.window_size} is below the {square} pixels of a visual token's side"
    full = vision.fullatt_block_indexes
    if beyond := [layer for layer in full if not 0 <= layer < vision.depth]:
        yield f"fullatt_block_indexes names layer {beyond[0]} of a tower with {vision.depth}"


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    width, inner, side = vision.hidden_size, vision.intermediate_size, vision.patch_size
    yield f"{TOWER}.patch_embed.proj.weight", (width, 3, vision.temporal_patch_size, side, side)
    matrices = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    for layer in range(vision.depth):
        for name, shape in matrices.items():
            yield from _with_bias(f"{TOWER}.blocks.{layer}.{name}", shape)
        for name in ("norm1", "norm2"):
            yield f"{TOWER}.blocks.{layer}.{name}.weight", (width,)
    merged = width * vision.spatial_merge_size**2
    yield from _with_bias(f"{TOWER}.merger.mlp.0", (merged, merged))
    yield from _with_bias(f"{TOWER}.merger.mlp.2", (vision.out_hidden_size, merged))
    yield f"{TOWER}.merger.ln_q.weight", (width,)


def _with_bias(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


PART = read_qwen2_5_vl
