"""What a plan reads: sizes of the model that a recipe starts from, its tokenizer where that is at hand, and batches.

Place in the pipeline: recipe -> `open_plan` -> `Opened` -> plan.py. Nothing here loads a weight.

A model of the hub is read from its copy on this machine, else from a shipped shape, else its config.json is fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lrkit.checkpoints.hub import config_folder, hub_folder
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.expected import Expected
from lrkit.data.shapes import Shape, load_shape, shape_config
from lrkit.errors import CheckpointError
from lrkit.families.protocols import Geometry
from lrkit.families.table import fresh_models, geometry_of, read_layout
from lrkit.model.backbone import Backbone
from lrkit.model.open_backbone import backbone_loader, config_of
from lrkit.pretrained import HUB_PREFIX
from lrkit.resources import list_resources
from lrkit.runtime.encode.processor import Processor
from lrkit.train.checks import check_init
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.plan.batches import StageSizes, drawn_sizes, expected_sizes
from lrkit.train.plan.model import PlannedModel, planned_model
from lrkit.train.recipe import FreshBackbone, Recipe


@dataclass(frozen=True)
class Opened:
    """Sizes of model and batches, and where they come from."""

    model: PlannedModel
    stages: Sequence[StageSizes]
    patch_values: int
    """Numbers of one patch."""
    model_from: str
    """In words."""
    data_from: str
    """In words."""
    expected: Expected | None
    """What was assumed of the samples; None: they were drawn."""


@dataclass(frozen=True)
class _Found:
    """A backbone without weights, and what comes with it."""

    backbone: Backbone
    family: str
    geometry: Geometry
    processor: Processor | None
    words: str


def open_plan(recipe: Recipe, expected: Expected | None = None, gpu: bool = True) -> Opened:
    """Sizes for a plan, by what `precision` means on a GPU or a CPU; `expected` replaces what the data set says of its
    samples, which are then not drawn.

    Raises:
        CheckpointError: `init` is not there, or a model of the hub that cannot be reached and has no shape.
        ConfigError: the settings do not fit the model.
        DataError: data that are there cannot be read.
    """
    settings = check_init(recipe).settings
    half = recipe.precision == "bfloat16" or (recipe.precision == "auto" and gpu)
    found = _found(recipe)
    model = planned_model(found.backbone, recipe, settings, found.family, half)
    geometry = found.geometry.with_max_pixels(recipe.max_pixels)
    assumed = expected or recipe.data.expected()
    if assumed is None and found.processor is not None:
        processor = _fitted(found.processor, geometry, settings)
        stages = drawn_sizes(recipe, recipe.data.open(recipe.seed, recipe.stages), processor, settings)
        return Opened(model, stages, processor.geometry.patch_bytes, found.words, _drawn(stages), None)
    assumed = assumed or Expected()
    why = "as --assume says" if expected else "the data are not at hand"
    if not expected and recipe.data.expected() is None:
        why = "without its tokenizer the data cannot be counted"
    stages = expected_sizes(recipe, assumed, geometry, settings)
    return Opened(model, stages, geometry.patch_bytes, found.words, f"assumed ({why})", assumed)


def _fitted(processor: Processor, geometry: Geometry, settings: ReasonerSettings) -> Processor:
    processor.geometry = geometry
    return processor.see_for(settings.replay)


def _drawn(stages: Sequence[StageSizes]) -> str:
    return f"drawn from the data, {len(stages[0].batches)} batches a stage"


def _found(recipe: Recipe) -> _Found:
    if isinstance(recipe.init, FreshBackbone):
        return _fresh(recipe, recipe.init)
    if not recipe.init.startswith(HUB_PREFIX):
        return _of_folder(check_init(recipe).folder or Path(recipe.init), recipe.init)
    hub_id = recipe.init.removeprefix(HUB_PREFIX)
    try:
        return _of_folder(hub_folder(hub_id), f"{hub_id}, the copy on this machine")
    except CheckpointError:
        pass
    if (shape := shapes_of_hub().get(hub_id)) is not None:
        return _of_shape(load_shape(shape), f"profiles/shapes/{shape}.json, as {hub_id} is not on this machine")
    try:
        return _of_folder(config_folder(hub_id), f"config.json of {hub_id}, fetched", tokenizer=False)
    except CheckpointError as error:
        known = ", ".join(sorted(shapes_of_hub()))
        raise CheckpointError(
            f"{error}; a plan without it can be made for the shapes that ship ({known}), or for a folder with its "
            "config.json"
        ) from error


def shapes_of_hub() -> Mapping[str, str]:
    """Hub id -> the shipped shape of its model, by the source that the shape names."""
    found: dict[str, str] = {}
    for resource in list_resources("shape"):
        words = load_shape(resource.name).source.replace(",", " ").split()
        named = next((word for word in words if word.count("/") == 1 and "." not in word.split("/")[0]), None)
        if named is not None:
            found[named] = resource.name
    return found


def _fresh(recipe: Recipe, values: FreshBackbone) -> _Found:
    processor = fresh_processor(recipe.data.words() or (), values.family)
    with torch.device("meta"):
        backbone = fresh_backbone(values, processor)
    return _Found(backbone, values.family, processor.geometry, processor, "random weights of the recipe's sizes")


def _of_folder(folder: Path, words: str, tokenizer: bool = True) -> _Found:
    layout = read_layout(folder)
    with torch.device("meta"):
        backbone = backbone_loader(layout.family)(fresh_models(layout.family).model(config_of(layout)))
    if not tokenizer:
        return _Found(backbone, layout.family, geometry_of(layout.family).from_folder(folder), None, words)
    processor = Processor.from_folder(folder)
    return _Found(backbone, layout.family, processor.geometry, processor, words)


def _of_shape(shape: Shape, words: str) -> _Found:
    with torch.device("meta"):
        backbone = backbone_loader(shape.family)(fresh_models(shape.family).model(shape_config(shape)))
    return _Found(backbone, shape.family, shape.geometry, None, words)
