"""A shape as earlier versions of lrkit wrote it: a flat list of sizes, from which a family makes a model.

Place in the pipeline: such a file -> `FlatShape` -> `published` -> the values of a `Shape` (shapes.py). The sizes are
those that Qwen2-VL has. Other families take of them what they can.
"""

import json
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lrkit.config import Config
from lrkit.data.tokenizer import SPECIAL_TOKENS
from lrkit.errors import require
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import DEFAULT, FamilyName, fresh_models

Side = Annotated[int, Field(ge=1, le=8192)]
_WORDS_BELOW = 256
"""Vocabulary of the prompt's words; a shape's vocabulary is larger."""


class FlatShape(Config):
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
    image_size: tuple[Side, Side]
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

    def published(self) -> dict[str, Any]:
        """The values of a `Shape` of the same model. The word tokenizer's own ids are those of the special tokens.

        Raises:
            MissingExtraError: transformers is not installed, whose config says what the family makes of the sizes.
        """
        require("transformers", "train")
        models, (width, height) = fresh_models(self.family), self.image_size
        geometry = models.geometry(self.patch_size, self.merge_size, width * height, width * height, plain=False)
        names = {name: getattr(self, name) for name in ModelSizes.__dataclass_fields__ if hasattr(self, name)}
        ids = {name: index for index, name in enumerate(SPECIAL_TOKENS)}
        tokens = ModelTokens(ids["<|image_pad|>"], ids["<|im_end|>"], ids["<|pad|>"], unused=ids["<|latent|>"])
        config = models.config(ModelSizes(**names, rope_theta=1000000.0), geometry, tokens)
        return {
            "description": self.description,
            "family": self.family,
            "source": "sizes given one by one",
            "config": json.loads(config.to_json_string(use_diff=False)),
            "pictures": json.loads(json.dumps(geometry.to_hf())),
            "picture": list(self.image_size),
            "note": self.note,
        }
