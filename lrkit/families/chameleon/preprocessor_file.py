"""The image processor's file of a Chameleon folder, as published and as all versions of transformers write it.

Place in the pipeline: file -> `read_values` (families/common) -> `fields_of` -> `SquareGeometry`; back by `values_for`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, one_line
from lrkit.files import read_json

_TYPES = ("ChameleonImageProcessor", "ChameleonImageProcessorFast", "ChameleonImageProcessorPil")


def token_side_of(folder: Path) -> dict[str, int]:
    """How many pixels a side of the tower halves to one, by the folder's config.json; empty where it does not say."""
    vision = read_json(folder / "config.json", CheckpointError, missing_ok=True).get("vq_config")
    levels = vision.get("channel_multiplier") if isinstance(vision, dict) else None
    return {"token_side": 1 << (len(levels) - 1)} if isinstance(levels, list) and 1 <= len(levels) <= 10 else {}


def fields_of(values: Mapping[str, Any], source: str, names: Iterable[str]) -> dict[str, Any]:
    """The fields `names` of `SquareGeometry` that the file says; `source` names it in messages.

    Raises:
        CheckpointError: another kind of image processor, or one that does not resize to a square.
    """
    kind = values.get("image_processor_type", _TYPES[0])
    if kind not in _TYPES:
        raise CheckpointError(
            f"{source}: image_processor_type is {one_line(str(kind), 60)}; lrkit reads {', '.join(_TYPES)}"
        )
    for step in ("do_resize", "do_center_crop"):
        if not values.get(step, True):
            raise CheckpointError(
                f"{source}: {step} is false, but the tower needs pictures of one size; set it to true"
            )
    fields = {name: values[name] for name in names if values.get(name) is not None}
    fields |= _sides(values, source)
    if not values.get("do_rescale", True):
        fields["rescale_factor"] = 1.0
    if not values.get("do_normalize", True):
        fields |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    return fields


def _sides(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`shortest_edge` and `crop_size`, each a number or a mapping in the file."""
    found: dict[str, Any] = {}
    size, crop = values.get("size"), values.get("crop_size")
    if size is not None:
        found["shortest_edge"] = size.get("shortest_edge") if isinstance(size, dict) else size
    if crop is not None:
        sides = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else [crop, crop]
        if sides[0] != sides[1]:
            raise CheckpointError(f"{source}: crop_size is {one_line(str(crop), 60)}; the tower needs a square")
        found["crop_size"] = sides[0]
    for name, side in found.items():
        if type(side) is not int:
            raise CheckpointError(f"{source}: {name} is {one_line(str(side), 60)}, no number of pixels; copy it again")
    return found


def values_for(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What to write for these fields of `SquareGeometry`, so that transformers reads the same processor. The side of a
    token is lrkit's own."""
    kept = {name: value for name, value in fields.items() if name not in ("shortest_edge", "crop_size")}
    return kept | {
        "image_processor_type": _TYPES[0],
        "processor_class": "ChameleonProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"shortest_edge": fields["shortest_edge"]},
        "crop_size": {"height": fields["crop_size"], "width": fields["crop_size"]},
    }
