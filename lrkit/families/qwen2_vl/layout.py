"""Qwen2-VL's config.json as lrkit reads it, and the weights that follow from it. Torch-free."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from lrkit.errors import CheckpointError
from lrkit.families.common.config_values import (
    ID,
    LAYERS,
    SIZE,
    Decoder,
    NumberType,
    Values,
    read_values_of,
    refuse_quantized,
)
from lrkit.families.common.decoder_tensors import DecoderTensors
from lrkit.families.layout import Layout, Shape

_TEXT = "model.language_model"
_TOWER = "model.visual"
_HEAD = "lm_head.weight"


class _Rotary(Values):
    """The rotary embedding. `type` is the name of older files, in which the only type was mrope."""

    mrope_section: tuple[int, int, int]
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    rope_type: Literal["default", "mrope"] | None = None
    type: Literal["default", "mrope"] | None = None


class _Text(Decoder):
    """The language model."""

    use_sliding_window: Literal[False] | None = False
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None


class _Vision(Values):
    """The vision tower."""

    depth: int = LAYERS
    embed_dim: int = SIZE
    hidden_size: int = SIZE
    num_heads: int = SIZE
    mlp_ratio: int = Field(default=4, ge=1, le=64)
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    in_channels: Literal[3] = 3
    patch_size: int = Field(ge=1, le=1024)
    spatial_merge_size: int = Field(default=2, ge=1, le=64)
    temporal_patch_size: int = Field(default=2, ge=1, le=64)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)


class _Outer(Values):
    """What belongs to neither."""

    image_token_id: int = ID
    video_token_id: int = Field(default=151656, ge=0, le=1 << 24)
    vision_start_token_id: int = Field(default=151652, ge=0, le=1 << 24)
    vision_end_token_id: int = Field(default=151653, ge=0, le=1 << 24)
    tie_word_embeddings: bool = False
    dtype: NumberType | None = None
    torch_dtype: NumberType | None = None


def read_qwen2_vl(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe, flat as published or with a text_config as transformers 5 writes
    it. `label` names the file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    refuse_quantized(values, label)
    inner = values.get("text_config")
    where = label if inner is None else f"{label}: text_config"
    text = read_values_of(_Text, values if inner is None else inner, where)
    vision = read_values_of(_Vision, values.get("vision_config"), f"{label}: vision_config")
    outer = read_values_of(_Outer, values, label)
    for wrong in _contradictions(text, vision, outer):
        raise CheckpointError(f"{label}: {wrong}; copy the file again, or give another model")
    tied = outer.tie_word_embeddings or text.tie_word_embeddings
    return Layout(
        family="qwen2_vl",
        width=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
        image_id=outer.image_token_id,
        cut={
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        },
        tied=tied,
        tensors=dict(_tensors(text, vision, tied)),
        copies={_HEAD: f"{_TEXT}.embed_tokens.weight"} if tied else {},
        adapted=dict(_decoder(text).adapted()),
        config=_for_transformers(text, vision, outer, tied),
        canonical=stored_name,
    )


def stored_name(stored: str) -> str | None:
    """Published files keep the names of transformers 4, in which tower and language model lay side by side."""
    if stored.endswith(".inv_freq"):  # older files hold those of language model and tower too; they are computed
        return None
    if stored.startswith("visual."):
        return f"model.{stored}"
    return re.sub(r"^model\.(?!language_model\.|visual\.)", f"{_TEXT}.", stored)


def _contradictions(text: _Text, vision: _Vision, outer: _Outer) -> Iterator[str]:
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    if text.hidden_size % heads or heads % keys:
        yield f"hidden_size {text.hidden_size}, {heads} heads and {keys} key heads do not divide"
    elif text.hidden_size // heads % 2:
        yield f"heads are {text.hidden_size // heads} wide, and rotary positions need an even width"
    rotary = text.rope_parameters or text.rope_scaling
    if rotary is None:
        yield "there are no rotary sections (rope_scaling.mrope_section)"
    elif min(rotary.mrope_section) < 0 or 2 * sum(rotary.mrope_section) * heads != text.hidden_size:
        yield f"mrope_section {list(rotary.mrope_section)} does not add up to half the width of a head"
    if vision.embed_dim % (4 * vision.num_heads):
        yield f"the tower's width {vision.embed_dim} and its {vision.num_heads} heads do not divide"
    if vision.hidden_size != text.hidden_size:
        yield f"the tower gives tokens of width {vision.hidden_size}, the language model takes {text.hidden_size}"
    if outer.image_token_id >= text.vocab_size:
        yield f"image_token_id {outer.image_token_id} is beyond the vocabulary of {text.vocab_size}"


def _tensors(text: _Text, vision: _Vision, tied: bool) -> Iterator[tuple[str, Shape]]:
    yield from _decoder(text).all()
    if not tied:
        yield _HEAD, (text.vocab_size, text.hidden_size)
    yield from _tower(vision)


def _decoder(text: _Text) -> DecoderTensors:
    return DecoderTensors(_TEXT, text, text.hidden_size // text.num_attention_heads, qkv_bias=True)


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    width, inner = vision.embed_dim, vision.embed_dim * vision.mlp_ratio
    merged = width * vision.spatial_merge_size**2
    side = vision.patch_size
    yield f"{_TOWER}.patch_embed.proj.weight", (width, 3, vision.temporal_patch_size, side, side)
    matrices = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (inner, width)}
    matrices["mlp.fc2"] = (width, inner)
    for layer in range(vision.depth):
        for name, shape in matrices.items():
            yield f"{_TOWER}.blocks.{layer}.{name}.weight", shape
            yield f"{_TOWER}.blocks.{layer}.{name}.bias", shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            yield f"{_TOWER}.blocks.{layer}.{name}", (width,)
    for name, shape in (("mlp.0", (merged, merged)), ("mlp.2", (vision.hidden_size, merged))):
        yield f"{_TOWER}.merger.{name}.weight", shape
        yield f"{_TOWER}.merger.{name}.bias", shape[:1]
    yield f"{_TOWER}.merger.ln_q.weight", (width,)
    yield f"{_TOWER}.merger.ln_q.bias", (width,)


def _for_transformers(text: _Text, vision: _Vision, outer: _Outer, tied: bool) -> dict[str, Any]:
    """Keyword arguments of Qwen2VLConfig."""
    rotary = text.rope_parameters or text.rope_scaling
    assert rotary is not None, "checked before"
    dtype = outer.dtype or outer.torch_dtype
    theta = rotary.rope_theta or text.rope_theta
    inner = text.model_dump(exclude={"rope_parameters", "rope_scaling", "rope_theta", "use_sliding_window"})
    inner["rope_parameters"] = {"rope_type": "default", "mrope_section": list(rotary.mrope_section)}
    inner["rope_parameters"] |= {"rope_theta": 1_000_000.0 if theta is None else theta}
    inner |= {"use_sliding_window": False, "tie_word_embeddings": tied, "dtype": dtype}
    given = outer.model_dump(exclude={"dtype", "torch_dtype"})
    return {
        **given, "architectures": ["Qwen2VLForConditionalGeneration"], "tie_word_embeddings": tied, "dtype": dtype,
        "text_config": inner, "vision_config": vision.model_dump(),
    }  # fmt: skip


PART = read_qwen2_vl
