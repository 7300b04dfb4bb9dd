"""What the files of a backbone must hold, worked out from its config.json without torch: names and shapes of all
weights, one table row per family.

Place in the pipeline: config.json -> `read_layout` -> whole_weights.py, which holds it against the headers of the
files, before a byte of memory is taken for weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, UnknownNameError, clean
from lrkit.files import read_json
from lrkit.registry import Registry

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A backbone, as its config.json describes it."""

    family: str
    """Its model_type."""
    width: int
    num_layers: int
    vocabulary: int
    """Rows of the embedding."""
    image_id: int
    """Token that stands for one visual token; no answer ever holds it."""
    cut: Mapping[str, int]
    """How the tower wants pictures cut: patch_size and merge_size in pixels and patches, temporal_patch_size in
    frames."""
    tied: bool
    """The head is the embedding matrix."""
    tensors: Mapping[str, Shape]
    """Every weight by its name in transformers."""
    copies: Mapping[str, str]
    """Weights that are others under a second name: the head of a tied model -> the embedding. Some tools store both."""
    adapted: Mapping[str, tuple[int, int]]
    """Modules that LoRA is put on: name -> (inputs, outputs)."""
    config: Mapping[str, Any]
    """config.json without what could make transformers load anything else."""
    canonical: Callable[[str], str | None]
    """Name in the files -> name in transformers; None for a tensor that transformers passes over."""


def read_layout(folder: Path) -> Layout:
    """The layout of a backbone's folder.

    Raises:
        CheckpointError: no usable config.json, a family that lrkit does not know, or sizes that do not go together.
    """
    file = folder / "config.json"
    if not file.exists():
        raise CheckpointError(
            f"{folder} has no config.json, so it holds no backbone; give a folder that transformers can load"
        )
    values = read_json(file, CheckpointError)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise CheckpointError(f"{file} names no model_type; give a folder that transformers can load")
    try:
        reader = LAYOUTS.load(clean(model_type)[:60])
    except UnknownNameError as error:
        raise CheckpointError(f"{file}: {error}") from error
    return reader(values, str(file))


LAYOUTS: Registry[Callable[[Mapping[str, Any], str], Layout]] = Registry(
    "backbone",
    {"qwen2_vl": "lrkit.families.qwen2_vl.layout:read_qwen2_vl"},
)
"""model_type -> the function that takes the values of config.json and the file's name for messages."""
