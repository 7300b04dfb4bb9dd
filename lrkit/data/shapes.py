"""The sizes of a published model, with a tokenizer and questions, to judge a device before any download or training.

Place in the pipeline: profiles/shapes/*.json -> `Shape` -> random weights on torch (lrkit/profile) or in a program
(lrkit/export).

The family that a shape names builds it. Blocks of the same widths and depths stand in for those of other families,
which differ in detail (windowed attention in a tower, say).
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lrkit.config import Config, load_config
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.sample import Sample
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY
from lrkit.errors import ConfigError, UserError
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import DEFAULT, FamilyName, fresh_models
from lrkit.files import read_json
from lrkit.resources import find_resource
from lrkit.runtime.encode.processor import Processor

_MOST_SAMPLES = 10
_WORDS_BELOW = 256
"""Vocabulary of the prompt's words; a shape's vocabulary is larger."""


_Side = Annotated[int, Field(ge=1, le=8192)]


class Shape(Config):
    """Sizes of a vision-language model."""

    description: str
    """Which model has these numbers."""
    family: FamilyName = DEFAULT
    """Who builds it."""
    hidden_size: int = Field(ge=8, le=131072)
    """Width of the language model."""
    num_layers: int = Field(ge=1, le=1000)
    """Its layers."""
    num_heads: int = Field(ge=1, le=4096)
    """Its query heads."""
    num_kv_heads: int = Field(ge=1, le=4096)
    """Its key heads."""
    intermediate_size: int = Field(ge=8, le=1048576)
    """Width of its feed-forward part."""
    vocabulary: int = Field(ge=_WORDS_BELOW, le=1 << 24)
    """Rows of the embedding."""
    tied_embeddings: bool
    """The head is the embedding matrix."""
    vision_depth: int = Field(ge=1, le=1000)
    """Layers of the vision tower."""
    vision_width: int = Field(ge=8, le=131072)
    """Its width."""
    vision_heads: int = Field(ge=1, le=4096)
    """Its heads."""
    vision_mlp_ratio: int = Field(ge=1, le=64)
    """Width of its feed-forward part over its own."""
    patch_size: int = Field(ge=1, le=256)
    """Side of a patch in pixels."""
    merge_size: int = Field(ge=1, le=16)
    """Side, in patches, of the square that becomes one visual token."""
    image_size: tuple[_Side, _Side]
    """Width and height of the picture that is asked about, in pixels; multiples of patch_size * merge_size."""
    note: str = ""
    """In what the stand-in differs from the model."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        pairs = (
            ("hidden_size", self.hidden_size, "num_heads", 2 * self.num_heads),
            ("num_heads", self.num_heads, "num_kv_heads", self.num_kv_heads),
            ("vision_width", self.vision_width, "vision_heads", 4 * self.vision_heads),
            *(("image_size", side, "patch_size * merge_size", self.patch_size * self.merge_size)
              for side in self.image_size),
        )  # fmt: skip
        problems = [
            f"{name} is {value}; it must be a multiple of {step} (from {of}), so change one of them"
            for name, value, of, step in pairs
            if value % step
        ]
        if self.hidden_size // self.num_heads < 8:
            problems.append(f"num_heads is {self.num_heads}; a head must be at least 8 wide, so lower it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def num_weights(self) -> int:
        """Roughly, norms left out."""
        head = self.hidden_size // self.num_heads
        attention = 2 * self.hidden_size**2 + 2 * self.hidden_size * self.num_kv_heads * head
        layers = self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)
        vision = self.vision_depth * (4 + 2 * self.vision_mlp_ratio) * self.vision_width**2
        return layers + vision + self.vocabulary * self.hidden_size * (1 if self.tied_embeddings else 2)


def load_shape(name: str) -> Shape:
    """The shape of a shipped name or a file. Raises as `find_resource` and `load_config`."""
    file = find_resource("shape", name)
    return load_config(Shape, read_json(file, ConfigError, max_bytes=1 << 20), label=str(file))


def shape_samples(name: str, count: int) -> list[Sample]:
    """Questions of equal length about a grey picture of the shape's size.

    Raises:
        UserError: more than 10.
    """
    from PIL import Image

    if count > _MOST_SAMPLES:
        raise UserError(f"a shape has {_MOST_SAMPLES} questions, and {count} were asked for; set samples.0.count lower")
    picture = Image.new("RGB", load_shape(name).image_size, (128, 128, 128))
    question = "Take 4 hops. Which room are you in? Start in room {}"
    return [Sample((picture,), question.format(room), (), "0", f"{name}-{room}") for room in range(count)]


def shape_processor(shape: Shape) -> Processor:
    """A tokenizer of the trail data's words and the family's markers, and pictures of the shape's size."""
    width, height = shape.image_size
    pixels = width * height
    geometry = fresh_models(shape.family).geometry(shape.patch_size, shape.merge_size, pixels, pixels, plain=False)
    return Processor(build_word_tokenizer(VOCABULARY, markers=geometry.markers), geometry, PromptFormat())


def shape_config(shape: Shape, processor: Processor) -> Any:
    """The config by which transformers builds it, with the special tokens of `processor`."""
    sizes = ModelSizes(
        **{name: getattr(shape, name) for name in ModelSizes.__dataclass_fields__ if hasattr(shape, name)},
        rope_theta=1000000.0,
    )
    tokens = ModelTokens(processor.image_id, processor.eos_id, processor.pad_id, unused=processor.latent_id)
    return fresh_models(shape.family).config(sizes, processor.geometry, tokens)
