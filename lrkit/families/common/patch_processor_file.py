"""The file of an image processor that merges patches, as published and as all versions of transformers write it.

Place in the pipeline: file -> `read_values` -> `fields_of` -> `MergedPatches`, and back by `values_for`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, one_line
from lrkit.files import read_json

_TYPES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")


def read_values(folder: Path) -> tuple[dict[str, Any], str]:
    """The values of `preprocessor_config.json`, or of the image part of `processor_config.json`, and the file's name.

    Raises:
        CheckpointError: neither file is there, or it cannot be used.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        values = read_json(path, CheckpointError)
        if name == "processor_config.json":
            values = values.get("image_processor", {})
            if not isinstance(values, dict):
                raise CheckpointError(f"{path}: image_processor is no mapping; copy the file again")
        return values, str(path)
    raise CheckpointError(f"{folder}: has no preprocessor_config.json; give a folder with the image processor's file")


def visual_positions_in(folder: Path) -> Any:
    """What the file says of visual tokens' positions; grid where it, or the file, says nothing."""
    try:
        return read_values(folder)[0].get("visual_positions", "grid")
    except CheckpointError:  # the folder's processor names the fault
        return "grid"


def fields_of(values: Mapping[str, Any], source: str, names: Iterable[str]) -> dict[str, Any]:
    """The fields `names` of `MergedPatches` that the file says; `source` names it in messages.

    Raises:
        CheckpointError: another kind of image processor, or one that does not resize.
    """
    kind = values.get("image_processor_type", _TYPES[0])
    if kind not in _TYPES:
        raise CheckpointError(
            f"{source}: image_processor_type is {one_line(str(kind), 60)}; lrkit reads {', '.join(_TYPES)}"
        )
    if not values.get("do_resize", True):
        raise CheckpointError(f"{source}: do_resize is false, but patches need resized pictures; set it to true")
    size = values.get("size") or {}
    if not isinstance(size, dict):
        raise CheckpointError(f"{source}: size is {one_line(str(size), 60)}, not a mapping; copy the file again")
    fields = {name: values[name] for name in names if values.get(name) is not None}
    for name, alias in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if name not in fields and (limit := size.get(alias, size.get(name))) is not None:
            fields[name] = limit
    if not values.get("do_rescale", True):
        fields["rescale_factor"] = 1.0
    if not values.get("do_normalize", True):
        fields |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    return fields


def values_for(fields: Mapping[str, Any], processor_class: str) -> dict[str, Any]:
    """What to write for these fields of `MergedPatches`, so that transformers reads the same processor."""
    limits = {"shortest_edge": fields["min_pixels"], "longest_edge": fields["max_pixels"]}
    return {name: value for name, value in fields.items() if name not in ("min_pixels", "max_pixels")} | {
        "image_processor_type": _TYPES[0],
        "processor_class": processor_class,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": limits,
    }
