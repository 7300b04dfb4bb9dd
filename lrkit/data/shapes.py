"""A published model without its weights, with a tokenizer and questions, to judge a device before any download or
training.

Place in the pipeline: profiles/shapes/*.json -> `Shape` -> random weights on torch (lrkit/profile) or in a program
(lrkit/export).

A shape holds what the model's own files say: config.json and the image processor's file. The family that it names reads
them as strictly as those of a checkpoint. So every weight has its published name and size.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from lrkit.config import Config, load_config
from lrkit.contract.prompt import PromptFormat
from lrkit.contract.sample import Sample
from lrkit.data.flat_shape import FlatShape, Side
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY
from lrkit.errors import CheckpointError, ConfigError, DataError, UserError
from lrkit.families.common.config_values import refuse_quantized
from lrkit.families.layout import Layout
from lrkit.families.protocols import Geometry
from lrkit.families.table import FamilyName, geometry_of, load_part
from lrkit.files import read_json, write_json
from lrkit.resources import find_resource
from lrkit.runtime.encode.processor import Processor

_MOST_SAMPLES = 10
_MOST_BYTES = 1 << 22


class Shape(Config):
    """A model as it is published, but for its weights."""

    description: str
    """Which model it is."""
    family: FamilyName
    """Whose parts read the rest: the `model_type` of config.json."""
    source: str
    """Where the values come from."""
    unconfirmed: tuple[str, ...] = ()
    """What of them was not seen in the published files."""
    config: dict[str, Any]
    """config.json of the model."""
    pictures: dict[str, Any]
    """preprocessor_config.json of the model."""
    processor: dict[str, Any] = {}
    """processor_config.json, where the family needs one."""
    picture: tuple[Side, Side]
    """Width and height of the picture that is asked about, in pixels."""
    tokens: dict[str, int] = {}
    """Special tokens of the model's tokenizer and their ids; the words between them are lrkit's own."""
    prompt: PromptFormat = PromptFormat()
    """What shows a picture, ends an answer and fills a batch, in the model's special tokens."""
    note: str = ""
    """What else a reader should know."""

    @model_validator(mode="after")
    def _files_are_the_familys(self) -> Self:
        named = self.config.get("model_type", self.family)
        if named != self.family:
            raise ValueError(f"family is {self.family} and config.model_type {str(named)[:60]!r}; write one name twice")
        try:
            layout, _ = self.layout, self.geometry
        except (CheckpointError, DataError) as error:
            raise ValueError(str(error)) from error
        ids = self.tokens.values()
        if wrong := [name for name, index in self.tokens.items() if not 0 <= index < layout.vocabulary]:
            raise ValueError(f"tokens: {wrong[0][:60]!r} has an id beyond the {layout.vocabulary} rows; correct it")
        if len(set(ids)) < len(ids):
            raise ValueError("tokens: two tokens have one id; give each its own")
        image = self.prompt.tokens.image
        if self.tokens.get(image, layout.image_id) != layout.image_id:
            raise ValueError(f"tokens: {image[:60]!r} is not the {layout.image_id} of config.json; correct one of them")
        return self

    @property
    def layout(self) -> Layout:
        """Names and shapes of all weights, as the family reads them. Raises `CheckpointError` as its part `layout`."""
        refuse_quantized(self.config, "config")
        return load_part(self.family, "layout")(self.config, "config")

    @property
    def geometry(self) -> Geometry:
        """How the model cuts pictures. Raises `CheckpointError` as `Geometry.from_folder`."""
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            write_json(place / "config.json", self.config)
            write_json(place / "preprocessor_config.json", self.pictures)
            if self.processor:
                write_json(place / "processor_config.json", self.processor)
            try:
                geometry = geometry_of(self.family).from_folder(place)
            except CheckpointError as error:
                said = str(error).replace(f"{place}/preprocessor_config.json", "pictures")
                said = said.replace(f"{place}/processor_config.json", "processor")
                raise CheckpointError(said.replace(str(place), "pictures")) from None
        for name, wanted in self.layout.cut.items():
            if (found := getattr(geometry, name)) != wanted:
                raise CheckpointError(f"pictures: {name} is {found}, and config says {wanted}; correct one of them")
        geometry.check_size(*self.picture)
        return geometry

    @property
    def num_weights(self) -> int:
        """All of them."""
        return sum(math.prod(size) for size in self.layout.tensors.values())


def load_shape(name: str) -> Shape:
    """The shape of a shipped name or a file, of today's form or the earlier flat one.

    Raises:
        UnknownNameError: no shape of that name; the message lists those that ship.
        ConfigError: no such file, or one that holds no shape.
        MissingExtraError: a flat one, and transformers is not installed.
    """
    file = find_resource("shape", name)
    values = read_json(file, ConfigError, max_bytes=_MOST_BYTES)
    if _is_flat(values):
        values = load_config(FlatShape, values, label=str(file)).published()
    return load_config(Shape, values, label=str(file))


def _is_flat(values: Mapping[str, Any]) -> bool:
    own = FlatShape.model_fields.keys() - Shape.model_fields.keys()
    return "config" not in values and bool(own & values.keys())


def shape_samples(name: str, picture: Sequence[int], count: int) -> list[Sample]:
    """Questions of equal length about a grey picture of that width and height; `name` begins the samples' names.

    Raises:
        UserError: more than 10.
    """
    from PIL import Image

    if count > _MOST_SAMPLES:
        raise UserError(f"a shape has {_MOST_SAMPLES} questions, and {count} were asked for; set samples.0.count lower")
    grey = Image.new("RGB", (picture[0], picture[1]), (128, 128, 128))
    question = "Take 4 hops. Which room are you in? Start in room {}"
    return [Sample((grey,), question.format(room), (), "0", f"{name}-{room}") for room in range(count)]


def shape_processor(shape: Shape) -> Processor:
    """A tokenizer of the trail data's words and the model's special tokens, and the model's own way to cut pictures, up
    to the size at which it sees the shape's.

    Raises:
        UserError: the vocabulary is too small for the words.
        CheckpointError: `prompt` holds a special token that is not among `tokens`.
    """
    geometry = shape.geometry
    width, height = geometry.seen_size(*shape.picture)
    geometry = geometry.with_max_pixels(width * height)
    ids = {**shape.tokens, shape.prompt.tokens.image: shape.layout.image_id}
    rows = shape.layout.vocabulary
    tokenizer = build_word_tokenizer(VOCABULARY, markers=geometry.markers, ids=ids, rows=rows)
    return Processor(tokenizer, geometry, shape.prompt)


def shape_config(shape: Shape) -> Any:
    """The config by which transformers builds it."""
    from lrkit.model.open_backbone import config_of

    return config_of(shape.layout)
