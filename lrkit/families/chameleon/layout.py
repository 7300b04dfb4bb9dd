"""Chameleon's config.json as lrkit reads it, and the weights that follow from it. Torch-free."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from lrkit.errors import CheckpointError
from lrkit.families.chameleon.vocabulary import IMAGE, read_map
from lrkit.families.common.config_values import (
    Decoder,
    NumberType,
    Values,
    read_values_of,
)
from lrkit.families.common.decoder_tensors import DecoderTensors
from lrkit.families.layout import Layout, Shape

_TEXT = "model"
_TOWER = "model.vqmodel"
_HEAD = "lm_head.weight"
_GROUPS = 32
"""Of the tower's group norms."""


class _Rotary(Values):
    """The rotary embedding, as transformers 5 writes it."""

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)


class _Text(Decoder):
    """The language model, flat in the file. Absent numbers are those of the 7B."""

    vocab_size: int = Field(default=65536, ge=1, le=1 << 24)
    hidden_size: int = Field(default=4096, ge=1, le=1 << 20)
    intermediate_size: int = Field(default=11008, ge=1, le=1 << 20)
    num_hidden_layers: int = Field(default=32, ge=1, le=1024)
    num_attention_heads: int = Field(default=32, ge=1, le=1 << 20)
    num_key_value_heads: int = Field(default=32, ge=1, le=1 << 20)
    max_position_embeddings: int = Field(default=4096, ge=1, le=1 << 32)
    attention_bias: Literal[False] | None = False
    mlp_bias: Literal[False] | None = False
    model_parallel_size: int = Field(default=1, ge=1, le=1024)
    swin_norm: bool = False
    rope_parameters: _Rotary | None = None
    rope_scaling: None = None
    dtype: NumberType | None = None
    torch_dtype: NumberType | None = None


class _Vision(Values):
    """The encoder of pictures and its quantizer. Absent numbers are those of all published sizes."""

    embed_dim: int = Field(default=256, ge=1, le=1 << 20)
    num_embeddings: int = Field(default=8192, ge=1, le=1 << 20)
    double_latent: Literal[False] = False
    latent_channels: int = Field(default=256, ge=1, le=1 << 20)
    resolution: int = Field(default=512, ge=1, le=8192)
    in_channels: Literal[3] = 3
    base_channels: int = Field(default=128, ge=1, le=1 << 16)
    channel_multiplier: list[int] = Field(default=[1, 1, 2, 2, 4], min_length=1, max_length=10)
    num_res_blocks: int = Field(default=2, ge=1, le=64)
    attn_resolutions: list[int] | None = None
    dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    attn_type: Literal["vanilla"] = "vanilla"

    @property
    def token_side(self) -> int:
        """Pixels of a code's side: every level but the last halves the picture."""
        return 1 << (len(self.channel_multiplier) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.base_channels * times for times in self.channel_multiplier]


def read_chameleon(values: Mapping[str, Any], label: str) -> Layout:
    """The layout that config.json's `values` describe. `label` names the file in messages.

    Raises:
        CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the backbone
            does something that lrkit does not know.
    """
    text = read_values_of(_Text, values, label)
    vision = read_values_of(_Vision, values.get("vq_config") or {}, f"{label}: vq_config")
    for wrong in _contradictions(text, vision):
        raise CheckpointError(f"{label}: {wrong}; copy the file again, or give another model")
    words = read_map(values.get("vocabulary_map"), vision.num_embeddings, text.vocab_size, f"{label}: vocabulary_map")
    tied = text.tie_word_embeddings
    return Layout(
        family="chameleon",
        width=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
        image_id=words[IMAGE],
        cut={"crop_size": vision.resolution, "token_side": vision.token_side},
        tied=tied,
        tensors=dict(_tensors(text, vision)),
        copies={_HEAD: f"{_TEXT}.embed_tokens.weight"} if tied else {},
        adapted=dict(_decoder(text).adapted()),
        config=_for_transformers(text, vision, words),
        canonical=_stored_name,
    )


def _stored_name(stored: str) -> str | None:
    return None if stored.endswith(".inv_freq") else stored  # they are computed


def _contradictions(text: _Text, vision: _Vision) -> Iterator[str]:
    heads, keys = text.num_attention_heads, text.num_key_value_heads
    if text.hidden_size % heads or heads % keys:
        yield f"hidden_size {text.hidden_size}, {heads} heads and {keys} key heads do not divide"
    elif text.hidden_size // heads % 2:
        yield f"heads are {text.hidden_size // heads} wide, and rotary positions need an even width"
    if min(vision.channel_multiplier) < 1 or any(width % _GROUPS for width in (vision.base_channels, *vision.widths)):
        yield f"the tower's channels {vision.widths} are no multiples of {_GROUPS}, the groups of its norms"
    if vision.resolution % vision.token_side:
        yield f"resolution {vision.resolution} is no multiple of {vision.token_side}, the side of a visual token"


def _tensors(text: _Text, vision: _Vision) -> Iterator[tuple[str, Shape]]:
    yield from _decoder(text).all()
    width = text.hidden_size // text.num_attention_heads
    for layer in range(text.num_hidden_layers):
        for name, heads in (("q_norm", text.num_attention_heads), ("k_norm", text.num_key_value_heads)):
            for kind in ("weight", "bias"):
                yield f"{_TEXT}.layers.{layer}.self_attn.{name}.{kind}", (heads, width)
    if not text.tie_word_embeddings:
        yield _HEAD, (text.vocab_size, text.hidden_size)
    for name, shape in _tower(vision):
        yield f"{_TOWER}.{name}.weight", shape
        if name != "quantize.embedding":
            yield f"{_TOWER}.{name}.bias", shape[:1]


def _decoder(text: _Text) -> DecoderTensors:
    return DecoderTensors(_TEXT, text, text.hidden_size // text.num_attention_heads)


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    """Modules of the tower with the shape of their weight."""
    yield "encoder.conv_in", (vision.base_channels, 3, 3, 3)
    width, side = vision.base_channels, vision.resolution
    for level, wider in enumerate(vision.widths):
        at = f"encoder.down.{level}"
        for block in range(vision.num_res_blocks):
            yield from _residual(f"{at}.block.{block}", width, wider)
            width = wider
            if side in (vision.attn_resolutions or ()):
                yield from _attention(f"{at}.attn.{block}", width)
        if level < len(vision.widths) - 1:
            yield f"{at}.downsample.conv", (width, width, 3, 3)
            side //= 2
    yield from _residual("encoder.mid.block_1", width, width)
    yield from _attention("encoder.mid.attn_1", width)
    yield from _residual("encoder.mid.block_2", width, width)
    yield "encoder.norm_out", (width,)
    yield "encoder.conv_out", (vision.latent_channels, width, 3, 3)
    yield "quantize.embedding", (vision.num_embeddings, vision.embed_dim)
    yield "quant_conv", (vision.embed_dim, vision.latent_channels, 1, 1)
    yield "post_quant_conv", (vision.latent_channels, vision.embed_dim, 1, 1)


def _residual(at: str, width: int, wider: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.norm1", (width,)
    yield f"{at}.conv1", (wider, width, 3, 3)
    yield f"{at}.norm2", (wider,)
    yield f"{at}.conv2", (wider, wider, 3, 3)
    if width != wider:
        yield f"{at}.nin_shortcut", (wider, width, 1, 1)


def _attention(at: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{at}.norm", (width,)
    for name in ("q", "k", "v", "proj_out"):
        yield f"{at}.{name}", (width, width, 1, 1)


def _for_transformers(text: _Text, vision: _Vision, words: Mapping[str, int]) -> dict[str, Any]:
    """Keyword arguments of ChameleonConfig."""
    theta = (text.rope_parameters and text.rope_parameters.rope_theta) or text.rope_theta or 10_000.0
    left_out = {"rope_parameters", "rope_scaling", "rope_theta", "dtype", "torch_dtype"}
    return {
        **text.model_dump(exclude=left_out), "attention_bias": False, "mlp_bias": False,
        "architectures": ["ChameleonForConditionalGeneration"], "dtype": text.dtype or text.torch_dtype,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta}, "vq_config": vision.model_dump(),
        "vocabulary_map": dict(words),
    }  # fmt: skip


PART = read_chameleon
