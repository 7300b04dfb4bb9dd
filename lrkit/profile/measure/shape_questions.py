"""What a shape is asked: questions about a picture of the size that it names, as random weights or as their bundle.

Place in the pipeline: models and suite -> `shape_questions` -> the samples of `profile_models`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrkit.contract.bundle.bundle_folder import is_bundle, open_bundle
from lrkit.contract.bundle.manifest import Manifest
from lrkit.contract.sample import Sample
from lrkit.data.shapes import load_shape, shape_samples
from lrkit.errors import UserError
from lrkit.profile.measure.suite import SHAPE, Suite
from lrkit.resources import random_shape


def shape_questions(model: str, suite: Suite) -> list[Sample] | None:
    """The questions of `model`, random:SHAPE or a bundle that was made of it; None: those of the suite's sample sets.

    Raises:
        UserError: the suite is for shapes, and the model is none.
        UnknownNameError, ConfigError: no such shape.
    """
    count = sum(chosen.count for chosen in suite.samples)
    asked = next((chosen.picture for chosen in suite.samples if chosen.picture is not None), None)
    if (name := random_shape(model)) is not None:
        return shape_samples(Path(name).stem, asked or load_shape(name).picture, count)
    if any(chosen.data != SHAPE for chosen in suite.samples):
        return None
    picture = shape_behind(open_bundle(model).manifest) if is_bundle(model) else None
    if picture is None:
        raise UserError(
            f"the suite asks about the picture of a shape, and {model} is none; give random:SHAPE, a bundle that was "
            "exported from it, or another suite"
        )
    return shape_samples(Path(model).stem, asked or picture, count)


def shape_behind(manifest: Manifest) -> Sequence[int] | None:
    """Width and height that the shape behind a bundle named, older bundles under another name; None: there is none."""
    shape: Any = manifest.provenance
    for key in ("checkpoint", "shape"):
        shape = shape.get(key) if isinstance(shape, dict) else None
    size = shape.get("picture", shape.get("image_size")) if isinstance(shape, dict) else None
    fits = isinstance(size, list) and len(size) == 2 and all(type(side) is int and 0 < side <= 8192 for side in size)
    return size if fits else None
