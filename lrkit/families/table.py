"""The families of backbones that lrkit knows: one row each, from the `model_type` of a config.json to its folder.

A family's folder is a package of parts. Each part is a module with a fixed name that offers one object called `PART`:

    layout     a `LayoutReader`     config.json -> what the files of the weights must hold (layout.py)
    geometry   a class, `Geometry`  pictures -> patches, image tokens, positions, regions (protocols.py)
    prompt     a `PromptStyle`      how a plain folder of the family shows pictures (protocols.py)
    backbone   a `BackboneLoader`   the model on torch (lrkit/model/open_backbone.py)
    fresh      a `FreshModels`      models with random weights, of given sizes (protocols.py)
    weights    a `WeightReader`     what an export reads (lrkit/export/weights/reader.py)
    tower      a `TowerWriter`      how an export writes the vision tower (lrkit/export/graph/tower_writer.py)

Parts are imported when they are asked for, so that the runtime without torch never meets one that needs it. They may
use the rooms above this one; nobody else imports them.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from lrkit.errors import CheckpointError, RowError, UnknownNameError, clean
from lrkit.families.layout import Layout
from lrkit.families.protocols import WINDOWS, FreshModels, Geometry, PromptStyle
from lrkit.files import read_json
from lrkit.pretrained import place_by_hand
from lrkit.registry import Registry

FAMILIES: Registry[Any] = Registry(
    "backbone",
    {
        "chameleon": "lrkit.families.chameleon",
        "qwen2_vl": "lrkit.families.qwen2_vl",
        "qwen2_5_vl": "lrkit.families.qwen2_5_vl",
        "qwen3_vl": "lrkit.families.qwen3_vl",
        "idefics3": "lrkit.families.idefics3",
        "smolvlm": "lrkit.families.idefics3.smolvlm",
    },
)
"""model_type -> the package of its parts."""

DEFAULT = "qwen2_vl"
"""The family where nothing names one: bundles written before they did, and models with random weights."""

LayoutReader = Callable[[Mapping[str, Any], str], Layout]
"""Takes the values of config.json and the file's name for messages."""


def _known(family: str) -> str:
    try:
        FAMILIES.check(family)
    except UnknownNameError as error:
        raise ValueError(str(error)) from error
    return family


FamilyName = Annotated[str, AfterValidator(_known)]
"""A row of the table, in a config."""


def load_part(family: str, part: str, offers: type | None = None, may_lack: Collection[str] = ()) -> Any:
    """A part of a family, which has what the protocol `offers` asks for but for members of `may_lack`.

    Raises:
        UnknownNameError: no such family, where the message lists those that there are, or one without this part.
        RowError: a part that cannot be imported or is not complete.
    """
    try:
        return FAMILIES.load(family, f".{part}:PART", offers, may_lack)
    except RowError as error:
        module = f"{FAMILIES.rows[family]}.{part}"
        if not isinstance(error.__cause__, ModuleNotFoundError) or error.__cause__.name != module:
            raise
        raise UnknownNameError(f"{family} has no part {part}; write {module}, or take another family") from error


def geometry_of(family: str) -> type[Geometry]:
    """How the family's pictures are read. Raises as `load_part`."""
    return load_part(family, "geometry", Geometry, WINDOWS)


def prompt_style(family: str) -> PromptStyle:
    """How the family's plain folders show pictures. Raises as `load_part`."""
    return load_part(family, "prompt", PromptStyle)


def fresh_models(family: str) -> FreshModels:
    """How models with random weights are made. Raises as `load_part`."""
    return load_part(family, "fresh", FreshModels)


def family_of(folder: Path) -> str:
    """The family that a folder's config.json names; the default where there is none or it names none.

    Raises:
        CheckpointError: config.json cannot be used, or names a family that lrkit does not know.
    """
    file = folder / "config.json"
    values = read_json(file, CheckpointError, missing_ok=True)
    return _family(values, file) if "model_type" in values else DEFAULT


def read_layout(folder: Path) -> Layout:
    """The layout of a backbone's folder.

    Raises:
        CheckpointError: no usable config.json, a family that lrkit does not know, or sizes that do not go together.
    """
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{folder} has no config.json, so it holds no backbone; {place_by_hand(folder)}")
    values = read_json(file, CheckpointError)
    reader: LayoutReader = load_part(_family(values, file), "layout")
    return reader(values, str(file))


def _family(values: Mapping[str, Any], file: Path) -> str:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(f"{file} names no model_type; give a folder that transformers can load")
    name = clean(model_type)[:60]
    try:
        FAMILIES.check(name)
    except UnknownNameError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return name
