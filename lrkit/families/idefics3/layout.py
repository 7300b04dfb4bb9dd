"""Idefics3's config.json as lrkit reads it, and the weights that follow from it. Torch-free.

Legend of shapes: E width of the tower.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from lrkit.errors import CheckpointError
from lrkit.families.common.config_values import (
    Decoder,
    NumberType,
    Values,
    read_values_of,
)
from lrkit.families.common.decoder_tensors import DecoderTensors
from lrkit.families.layout import Layout, Shape

TEXT, TOWER, CONNECTOR, HEAD = "model.text_model", "model.vision_model", "model.connector", "lm_head.weight"
"""Where language model, tower, connector and head lie in transformers."""


class _Rotary(Values):
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    rope_type: Literal["default"] | None = None
    type: Literal["default"] | None = None


class _Text(Decoder):
    """The language model, a Llama."""

    head_dim: int | None = Field(default=None, ge=1, le=1 << 20)
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    rope_interleaved: Literal[False] = False
    qk_layer_norms: Literal[False] = False
    rope_parameters: _Rotary | None = None
    rope_scaling: _Rotary | None = None

    @property
    def head_width(self) -> int:
        """As given, or what makes all heads together as wide as the model."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def theta(self) -> float:
        """Of the rotary embedding; Llama's own where none is given."""
        given = [rotary.rope_theta for rotary in (self.rope_parameters, self.rope_scaling) if rotary is not None]
        return next((value for value in (*given, self.rope_theta) if value is not None), 10_000.0)


class _Vision(Values):
    """The vision tower, a SigLIP; published files leave out what is transformers' default."""

    hidden_size: int = Field(default=1152, ge=1, le=1 << 20)
    intermediate_size: int = Field(default=3072, ge=1, le=1 << 20)
    num_hidden_layers: int = Field(default=12, ge=1, le=1024)
    num_attention_heads: int = Field(default=16, ge=1, le=1 << 20)
    num_channels: Literal[3] = 3
    image_size: int = Field(default=224, ge=1, le=1 << 16)
    patch_size: int = Field(default=32, ge=1, le=1024)
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    layer_norm_eps: float = Field(default=1e-6, gt=0.0, le=1.0)
    attention_dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)

    @property
    def side(self) -> int:
        """Patches of a side of a view."""
        return self.image_size // self.patch_size


class _Outer(Values):
    """What belongs to neither."""

    image_token_id: int = Field(default=128257, ge=0, le=1 << 24)
    scale_factor: int = Field(default=2, ge=1, le=64)
    tie_word_embeddings: bool = False
    dtype: NumberType | None = None
    torch_dtype: NumberType | None = None


@dataclass(frozen=True)
class LayoutReader:
    """Reads the config.json of one of the two names under which the architecture is published."""

    family: str
    architecture: str

    def __call__(self, values: Mapping[str, Any], label: str) -> Layout:
        """The layout that `values` describe; `label` names the file in messages.

        Raises:
            CheckpointError: a size is missing, of a wrong type or beyond reason, sizes do not go together, or the
                backbone does something that lrkit does not know.
        """
        text = read_values_of(_Text, values.get("text_config"), f"{label}: text_config")
        vision = read_values_of(_Vision, values.get("vision_config"), f"{label}: vision_config")
        outer = read_values_of(_Outer, values, label)
        for wrong in _contradictions(text, vision, outer):
            raise CheckpointError(f"{label}: {wrong}; copy the file again, or give another model")
        decoder, tied = DecoderTensors(TEXT, text, text.head_width), outer.tie_word_embeddings
        tensors = {**dict(decoder.all()), **dict(_tower(vision))}
        tensors[f"{CONNECTOR}.modality_projection.proj.weight"] = (
            text.hidden_size, vision.hidden_size * outer.scale_factor**2
        )  # fmt: skip
        if not tied:
            tensors[HEAD] = (text.vocab_size, text.hidden_size)
        return Layout(
            family=self.family,
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            max_positions=text.max_position_embeddings,
            image_id=outer.image_token_id,
            cut={"patch_size": vision.patch_size, "scale_factor": outer.scale_factor, "tile": vision.image_size},
            tied=tied,
            tensors=tensors,
            copies={HEAD: f"{TEXT}.embed_tokens.weight"} if tied else {},
            adapted=dict(decoder.adapted()),
            config=self._for_transformers(text, vision, outer),
            canonical=_stored_name,
            gguf=("llama",),
        )

    def _for_transformers(self, text: _Text, vision: _Vision, outer: _Outer) -> dict[str, Any]:
        """Keyword arguments of the config class."""
        tied, dtype = outer.tie_word_embeddings, outer.dtype or outer.torch_dtype
        inner = text.model_dump(
            exclude={"rope_parameters", "rope_scaling", "rope_theta", "rope_interleaved", "qk_layer_norms"}
        )
        inner["rope_parameters"] = {"rope_type": "default", "rope_theta": text.theta}
        inner |= {"model_type": "llama", "head_dim": text.head_width, "tie_word_embeddings": tied, "dtype": dtype}
        return {
            "architectures": [self.architecture], "image_token_id": outer.image_token_id,
            "scale_factor": outer.scale_factor, "tie_word_embeddings": tied, "dtype": dtype, "text_config": inner,
            "vision_config": vision.model_dump(),
        }  # fmt: skip


def _stored_name(stored: str) -> str | None:
    """As transformers has it; rotary frequencies are computed."""
    return None if stored.endswith(".inv_freq") else stored


def _contradictions(text: _Text, vision: _Vision, outer: _Outer) -> Iterator[str]:
    heads, keys, scale = text.num_attention_heads, text.num_key_value_heads, outer.scale_factor
    if (text.head_dim is None and text.hidden_size % heads) or heads % keys:
        yield f"hidden_size {text.hidden_size}, {heads} heads and {keys} key heads do not divide"
    elif text.head_width % 2:
        yield f"heads are {text.head_width} wide, and rotary positions need an even width"
    if vision.hidden_size % vision.num_attention_heads:
        yield f"the tower's width {vision.hidden_size} and its {vision.num_attention_heads} heads do not divide"
    if vision.side == 0 or vision.side % scale:
        yield (
            f"image_size {vision.image_size} and patch_size {vision.patch_size} make {vision.side} patches a side, "
            f"which scale_factor {scale} does not divide"
        )
    if outer.image_token_id >= text.vocab_size:
        yield f"image_token_id {outer.image_token_id} is beyond the vocabulary of {text.vocab_size}"


def _tower(vision: _Vision) -> Iterator[tuple[str, Shape]]:
    width, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    yield f"{TOWER}.embeddings.patch_embedding.weight", (width, 3, patch, patch)
    yield f"{TOWER}.embeddings.patch_embedding.bias", (width,)
    yield f"{TOWER}.embeddings.position_embedding.weight", (vision.side**2, width)
    matrices: dict[str, Shape] = {f"self_attn.{part}_proj": (width, width) for part in ("k", "v", "q", "out")}
    matrices |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    for layer in range(vision.num_hidden_layers):
        place = f"{TOWER}.encoder.layers.{layer}"
        for name, shape in matrices.items():
            yield f"{place}.{name}.weight", shape
            yield f"{place}.{name}.bias", shape[:1]
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{place}.{norm}.weight", (width,)
            yield f"{place}.{norm}.bias", (width,)
    yield f"{TOWER}.post_layernorm.weight", (width,)
    yield f"{TOWER}.post_layernorm.bias", (width,)


PART = LayoutReader("idefics3", "Idefics3ForConditionalGeneration")
