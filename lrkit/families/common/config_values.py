"""Strict readers of the parts of a config.json, for the part `layout` of a family. Torch-free.

Only the keys that a reader names are read, and only they are handed to transformers. The others could name code,
another attention kernel or a quantizer, or have no use.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrkit.config import Config, load_config
from lrkit.config_problems import describe
from lrkit.errors import CheckpointError, ConfigError

# Far above all that was ever trained; the sizes are held against the files before memory is taken.
SIZE = Field(ge=1, le=1 << 20)
"""A width or a number of heads."""
LAYERS = Field(ge=1, le=1024)
ROWS = Field(ge=1, le=1 << 24)
"""Of an embedding."""
ID = Field(ge=0, le=1 << 24)
"""A token."""
NumberType = Literal["float32", "float16", "bfloat16"]


class Values(BaseModel):
    """Some keys of a mapping; those that are not named are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Decoder(Values):
    """Keys of a Llama-like language model; a family adds its own."""

    vocab_size: int = ROWS
    hidden_size: int = SIZE
    intermediate_size: int = SIZE
    num_hidden_layers: int = LAYERS
    num_attention_heads: int = SIZE
    num_key_value_heads: int = SIZE
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: int = Field(default=32768, ge=1, le=1 << 32)
    initializer_range: float = Field(default=0.02, ge=0.0, le=1.0)
    rms_norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    attention_dropout: float | None = Field(default=0.0, ge=0.0, le=1.0)
    rope_theta: float | None = Field(default=None, gt=0.0, le=1e12)
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


ValuesT = TypeVar("ValuesT", bound=Values)
ConfigT = TypeVar("ConfigT", bound=Config)


def read_values_of(cls: type[ValuesT], values: Any, label: str) -> ValuesT:
    """The keys of `cls` in `values`; `label` names the file and the part in messages.

    Raises:
        CheckpointError: no mapping, a key is missing, or a value is of a wrong type or beyond reason.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{label} is {type(values).__name__} where a mapping belongs; copy the file again")
    known = {name: values[name] for name in cls.model_fields if name in values}
    try:
        return load_config(cls, known)
    except ConfigError as error:
        problems = [line.removeprefix(f"{cls.__name__}: ") for line in str(error).splitlines()]
        raise CheckpointError(f"{_first(problems, label)}; copy the file again, or give another model") from error


def made_of(cls: type[ConfigT], fields: Mapping[str, Any], label: str) -> ConfigT:
    """A geometry of the fields that an image processor's file gives; `label` names the file in messages.

    Raises:
        CheckpointError: a value is of a wrong type or beyond reason, or values do not go together.
    """
    try:
        return cls(**fields)
    except ValidationError as error:
        problems = describe(cls, error, dict(fields), label, [])
        problems = [line.removeprefix(f"{label}: ") for line in problems]
        raise CheckpointError(f"{_first(problems, label)}; copy the file again") from error


def _first(problems: Sequence[str], label: str) -> str:
    """The first problem, and how many more there are."""
    others = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{label}: {problems[0]}{others}"


def refuse_quantized(values: Mapping[str, Any], label: str) -> None:
    """Raises `CheckpointError` where the weights are quantized."""
    if values.get("quantization_config") is not None:
        raise CheckpointError(f"{label}: the weights are quantized; give the model as it was before (bf16 or float)")
