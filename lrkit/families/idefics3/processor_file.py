"""The files of an Idefics3 folder that say how pictures are cut.

Sizes of pictures stand in preprocessor_config.json (or in the image part of processor_config.json). What the tower
makes of them stands in config.json alone: lrkit adds it to the preprocessor_config.json that it writes, so that a
bundle needs no config.json.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, one_line
from lrkit.families.common.patch_processor_file import read_values
from lrkit.files import read_json

_TOWER = {"patch_size": 32, "scale_factor": 2}
"""What transformers takes where config.json says nothing."""
_COPY = "copy the file again"


def read_fields(folder: Path, names: tuple[str, ...], types: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The fields `names` of the geometry that the folder's files say, and the file for messages; `types` are the image
    processors that the family reads.

    Raises:
        CheckpointError: a file is missing or cannot be used, or describes another kind of image processor.
    """
    values, source = read_values(folder)
    kind = values.get("image_processor_type", types[0])
    if kind not in types:
        raise CheckpointError(
            f"{source}: image_processor_type is {one_line(str(kind), 60)}; lrkit reads {', '.join(types)}"
        )
    if not values.get("do_resize", True):
        raise CheckpointError(f"{source}: do_resize is false, but sub-images need resized pictures; set it to true")
    fields = {name: values[name] for name in names if values.get(name) is not None}
    for name, key in (("longest_edge", "size"), ("tile", "max_image_size")):
        if (edge := _edge(values, key, source)) is not None:
            fields[name] = edge
    fields["split"] = values.get("do_image_splitting", True)
    if not values.get("do_rescale", True):
        fields["rescale_factor"] = 1.0
    if not values.get("do_normalize", True):
        fields |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    return {**_tower_fields(folder, fields), **fields}, source


def values_for(fields: Mapping[str, Any], kind: str, processor: str) -> dict[str, Any]:
    """What to write for these fields, so that transformers reads the same processor."""
    kept = ("image_mean", "image_std", "rescale_factor", "resample", "most_edge", *_TOWER)
    return {
        **{name: fields[name] for name in kept if fields[name] is not None},
        "image_processor_type": kind, "processor_class": processor, "do_convert_rgb": True, "do_resize": True,
        "do_rescale": True, "do_normalize": True, "do_pad": True, "do_image_splitting": fields["split"],
        "size": {"longest_edge": fields["longest_edge"]}, "max_image_size": {"longest_edge": fields["tile"]},
    }  # fmt: skip


def tokens_of_a_view(folder: Path) -> int | None:
    """image_seq_len of processor_config.json; None where no file says it.

    Raises:
        CheckpointError: the file cannot be used.
    """
    found = read_json(folder / "processor_config.json", CheckpointError, missing_ok=True).get("image_seq_len")
    return found if type(found) is int else None


def _edge(values: Mapping[str, Any], key: str, source: str) -> Any:
    size = values.get(key)
    if size is None:
        return None
    if not isinstance(size, dict) or "longest_edge" not in size:
        raise CheckpointError(f"{source}: {key} is {one_line(str(size), 60)}; lrkit reads its longest_edge, so {_COPY}")
    return size["longest_edge"]


def _tower_fields(folder: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the image processor's file does not say."""
    if all(name in fields for name in _TOWER):
        return {}
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(f"{folder}: has no config.json, which says how the vision tower cuts pictures; {_COPY}")
    values = read_json(file, CheckpointError)
    vision = values.get("vision_config")
    given = {**_TOWER, **{key: v for key, v in values.items() if key == "scale_factor"}}
    if isinstance(vision, dict) and "patch_size" in vision:
        given["patch_size"] = vision["patch_size"]
    return given
