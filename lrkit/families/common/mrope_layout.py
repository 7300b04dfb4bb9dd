"""config.json of models whose decoder turns by three positions (mrope.py), flat as published or with a text_config as
transformers 5 writes it: for the part `layout` of several families. Torch-free.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from lrkit.errors import CheckpointError
from lrkit.families.common.config_values import ID, Decoder, NumberType, Values, read_values_of
from lrkit.families.common.decoder_tensors import DecoderTensors
from lrkit.families.layout import Layout, Shape

TEXT, TOWER, HEAD = "model.language_model", "model.visual", "lm_head.weight"
"""Where language model, tower and head lie in transformers."""

GGUF_DECODERS = ("llama", "qwen2", "qwen2vl")
"""Architectures of GGUF files whose language model is `Text` as it is. A Llama is one with biases of zero."""


class Rotary(Values):
    """The rotary embedding. `type` is the name of older files, in which the only type was mrope."""

    mrope_section: tuple[int, int, int]
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    rope_type: Literal["default", "mrope"] | None = None
    type: Literal["default", "mrope"] | None = None


class Text(Decoder):
    """The language model; a family whose is another adds its own keys."""

    qkv_bias: ClassVar[bool] = True
    """As in `DecoderTensors`."""
    head_norms: ClassVar[bool] = False
    """As in `DecoderTensors`."""
    default_theta: ClassVar[float] = 1_000_000.0
    """Base of the rotary frequencies where the file names none."""

    use_sliding_window: Literal[False] | None = False
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    dtype: NumberType | None = None

    @property
    def head_width(self) -> int:
        """Of a head of attention."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary(self) -> Rotary | None:
        """Under the name of transformers 5 or that of older files."""
        return self.rope_parameters or self.rope_scaling

    @property
    def decoder(self) -> DecoderTensors:
        """Its weights."""
        return DecoderTensors(TEXT, self, self.head_width, qkv_bias=self.qkv_bias, head_norms=self.head_norms)

    def for_transformers(self) -> dict[str, Any]:
        """Keyword arguments of the config class of the language model."""
        rotary = self.rotary
        assert rotary is not None, "checked before"
        theta = rotary.rope_theta or self.rope_theta
        inner = self.model_dump(exclude={"rope_parameters", "rope_scaling", "rope_theta"})
        turning = rotary.model_dump(mode="json", exclude={"rope_type", "type", "rope_theta"})
        turning |= {"rope_type": "default", "rope_theta": self.default_theta if theta is None else theta}
        return inner | {"rope_parameters": turning}

    def contradictions(self) -> Iterator[str]:
        """What in it does not go together."""
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads or heads % keys:
            yield f"hidden_size {self.hidden_size}, {heads} heads and {keys} key heads do not divide"
        elif self.head_width % 2:
            yield f"heads are {self.head_width} wide, and rotary positions need an even width"
        rotary = self.rotary
        if rotary is None:
            yield "there are no rotary sections (rope_scaling.mrope_section)"
        elif min(rotary.mrope_section) < 0 or 2 * sum(rotary.mrope_section) != self.head_width:
            yield f"mrope_section {list(rotary.mrope_section)} does not add up to half the width of a head"


class TowerRotary(Values):
    """The rotary embedding of a tower, by rows and columns."""

    rope_theta: float = Field(default=10000.0, gt=0.0, le=1e12)
    rope_type: Literal["axial"] = "axial"


class Tower(Values):
    """What every tower says of how pictures are cut; a family adds its own."""

    in_channels: Literal[3] = 3
    patch_size: int = Field(ge=1, le=1024)
    spatial_merge_size: int = Field(default=2, ge=1, le=64)
    temporal_patch_size: int = Field(default=2, ge=1, le=64)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)
    rope_parameters: TowerRotary | None = None

    @property
    def cut(self) -> dict[str, int]:
        """For `Layout.cut`."""
        return {
            "patch_size": self.patch_size,
            "merge_size": self.spatial_merge_size,
            "temporal_patch_size": self.temporal_patch_size,
        }


class Outer(Values):
    """What belongs to neither."""

    image_token_id: int = ID
    video_token_id: int = Field(default=151656, ge=0, le=1 << 24)
    vision_start_token_id: int = Field(default=151652, ge=0, le=1 << 24)
    vision_end_token_id: int = Field(default=151653, ge=0, le=1 << 24)
    tie_word_embeddings: bool = False
    dtype: NumberType | None = None
    torch_dtype: NumberType | None = None


TextT = TypeVar("TextT", bound=Text)
TowerT = TypeVar("TowerT", bound=Tower)


@dataclass(frozen=True)
class Read(Generic[TowerT, TextT]):
    """The parts of one config.json."""

    text: TextT
    vision: TowerT
    outer: Outer

    @property
    def tied(self) -> bool:
        """Files of transformers 4 say so inside, those of transformers 5 outside."""
        return self.outer.tie_word_embeddings or self.text.tie_word_embeddings

    def layout(
        self, family: str, tower: Mapping[str, Shape], config: Mapping[str, Any], gguf: tuple[str, ...] = (), **cut: int
    ) -> Layout:
        """The layout of a family with these weights of its tower; `config` is for transformers, `cut` what its tower
        asks of pictures beside `Tower.cut`, and `gguf` as in `Layout`."""
        text, decoder = self.text, self.text.decoder
        tensors = dict(decoder.all()) | dict(tower)
        if not self.tied:
            tensors[HEAD] = (text.vocab_size, text.hidden_size)
        return Layout(
            family=family,
            width=text.hidden_size,
            num_layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            max_positions=text.max_position_embeddings,
            image_id=self.outer.image_token_id,
            cut=self.vision.cut | cut,
            tied=self.tied,
            tensors=tensors,
            copies={HEAD: f"{TEXT}.embed_tokens.weight"} if self.tied else {},
            adapted=dict(decoder.adapted()),
            config=config,
            canonical=stored_name,
            gguf=gguf,
        )

    def for_transformers(self, architecture: str, vision: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments of the family's config class; `vision` is the tower's part."""
        dtype = self.outer.dtype or self.outer.torch_dtype or self.text.dtype
        inner = self.text.for_transformers() | {"tie_word_embeddings": self.tied, "dtype": dtype}
        given = self.outer.model_dump(exclude={"dtype", "torch_dtype"})
        return {
            **given, "architectures": [architecture], "tie_word_embeddings": self.tied, "dtype": dtype,
            "text_config": inner, "vision_config": vision,
        }  # fmt: skip


def read_parts(
    values: Mapping[str, Any], tower: type[TowerT], label: str, text: type[TextT] = Text
) -> Read[TowerT, TextT]:
    """The parts of config.json's `values`; `label` names the file in messages.

    Raises:
        CheckpointError: as `read_values_of`.
    """
    inner = values.get("text_config")
    where = label if inner is None else f"{label}: text_config"
    return Read(
        read_values_of(text, values if inner is None else inner, where),
        read_values_of(tower, values.get("vision_config"), f"{label}: vision_config"),
        read_values_of(Outer, values, label),
    )


def refuse(problems: Iterator[str], label: str) -> None:
    """Raises `CheckpointError` with the first of the problems."""
    for wrong in problems:
        raise CheckpointError(f"{label}: {wrong}; copy the file again, or give another model")


def contradictions(text: Text, outer: Outer) -> Iterator[str]:
    """What in the language model does not go together."""
    yield from text.contradictions()
    if outer.image_token_id >= text.vocab_size:
        yield f"image_token_id {outer.image_token_id} is beyond the vocabulary of {text.vocab_size}"


def tower_contradictions(width: int, heads: int, out: int, text: Text) -> Iterator[str]:
    """What in a tower `width` wide, whose tokens are `out` wide, does not go together or with the language model."""
    if width % (4 * heads):
        yield f"the tower's width {width} and its {heads} heads do not divide"
    if out != text.hidden_size:
        yield f"the tower gives tokens of width {out}, the language model takes {text.hidden_size}"


def stored_name(stored: str) -> str | None:
    """Published files keep the names of transformers 4, in which tower and language model lay side by side."""
    if stored.endswith(".inv_freq"):  # older files hold those of language model and tower too; they are computed
        return None
    if stored.startswith("visual."):
        return f"model.{stored}"
    return re.sub(r"^model\.(?!language_model\.|visual\.)", f"{TEXT}.", stored)
