"""Qwen2-VL's config.json as lrkit reads it, and the weights that follow from it. Torch-free.

Only the keys named here are handed to transformers. The others could name code, another attention kernel or a
quantizer, or have no use.

Legend of shapes: W vocabulary, D width, E width of the vision tower.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from lrkit.config import load_config
from lrkit.errors import CheckpointError, ConfigError
from lrkit.families.layout import Layout, Shape

_TEXT = "model.language_model"
_TOWER = "model.visual"
_HEAD = "lm_head.weight"
# Far above all that was ever trained; the sizes are held against the files before memory is taken.
_SIZE = Field(ge=1, le=1 << 20)
_LAYERS = Field(ge=1, le=1024)
_ROWS = Field(ge=1, le=1 << 24)
_ID = Field(ge=0, le=1 << 24)


class _Values(BaseModel):
    """Keys that are not named are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class _Rotary(_Values):
    """The rotary embedding. `type` is the name of older files, in which the only type was mrope."""

    mrope_section: tuple[int, int, int]
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    rope_type: Literal["default", "mrope"] | None = None
    type: Literal["default", "mrope"] | None = None


class _Text(_Values):
    """The language model."""

    vocab_size: int = _ROWS
    hidden_size: int = _SIZE
    intermediate_size: int = _SIZE
    num_hidden_layers: int = _LAYERS
    num_attention_heads: int = _SIZE
    num_key_value_heads: int = _SIZE
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: int = Field(default=32768, ge=1, le=1 << 32)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)
    rms_norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    use_sliding_window: Literal[False] | None = False
    attention_dropout: float | None = Field(default=0.0, ge=0.0, le=1.0)
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


class _Vision(_Values):
    """The vision tower."""

    depth: int = _LAYERS
    embed_dim: int = _SIZE
    hidden_size: int = _SIZE
    num_heads: int = _SIZE
    mlp_ratio: int = Field(default=4, ge=1, le=64)
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    in_channels: Literal[3] = 3
    patch_size: int = Field(ge=1, le=1024)
    spatial_merge_size: int = Field(default=2, ge=1, le=64)
    temporal_patch_size: int = Field(default=2, ge=1, le=64)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)


class _Outer(_Values):
    """What belongs to neither."""

    image_token_id: int = _ID
    video_token_id: int = Field(default=151656, ge=0, le=1 << 24)
    vision_start_token_id: int = Field(default=151652, ge=0, le=1 << 24)
    vision_end_token_id: int = Field(default=151653, ge=0, le=1 << 24)
    tie_word_embeddings: bool = False
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    torch_dtype: Literal["float32", "float16", "bfloat16"] | None = None


ValuesT = TypeVar("ValuesT", bound=_Values)


def read_qwen2_vl(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe, flat as published or with a text_config as transformers 5 writes
    it. `label` names the file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    if values.get("quantization_config") is not None:
        raise CheckpointError(f"{label}: the weights are quantized; give the model as it was before (bf16 or float)")
    inner = values.get("text_config")
    text = _read(_Text, values if inner is None else inner, f"{label}{'' if inner is None else ': text_config'}")
    vision = _read(_Vision, values.get("vision_config"), f"{label}: vision_config")
    outer = _read(_Outer, values, label)
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
        adapted=dict(_adapted(text)),
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


def _read(cls: type[ValuesT], values: Any, label: str) -> ValuesT:
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{label} is {type(values).__name__} where a mapping belongs; copy the file again")
    known = {name: values[name] for name in cls.model_fields if name in values}
    try:
        return load_config(cls, known)
    except ConfigError as error:
        first, *more = str(error).splitlines()
        others = f", and {len(more)} more" if more else ""
        first = first.removeprefix(f"{cls.__name__}: ")
        raise CheckpointError(f"{label}: {first}{others}; copy the file again, or give another model") from error


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
    width, rows = text.hidden_size, text.vocab_size
    yield f"{_TEXT}.embed_tokens.weight", (rows, width)
    yield f"{_TEXT}.norm.weight", (width,)
    if not tied:
        yield _HEAD, (rows, width)
    for module, (inputs, outputs) in _adapted(text):
        yield f"{module}.weight", (outputs, inputs)
        if module.endswith(("q_proj", "k_proj", "v_proj")):
            yield f"{module}.bias", (outputs,)
    for layer in range(text.num_hidden_layers):
        yield f"{_TEXT}.layers.{layer}.input_layernorm.weight", (width,)
        yield f"{_TEXT}.layers.{layer}.post_attention_layernorm.weight", (width,)
    yield from _tower(vision)


def _adapted(text: _Text) -> Iterator[tuple[str, tuple[int, int]]]:
    width, inner = text.hidden_size, text.intermediate_size
    keys = width // text.num_attention_heads * text.num_key_value_heads
    sizes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (width, keys), "self_attn.v_proj": (width, keys),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (width, inner), "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }  # fmt: skip
    for layer in range(text.num_hidden_layers):
        for name, size in sizes.items():
            yield f"{_TEXT}.layers.{layer}.{name}", size


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
