"""What a run starts from: random weights, a checkpoint, or a plain Hugging Face model; and whether that is there.

`check_start` looks without loading a weight, so that a wrong path is found together with a recipe's other problems.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lrkit.errors import CheckpointError, require
from lrkit.model.backbones.protocol import Backbone
from lrkit.model.backbones.table import load_backbone
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import load_checkpoint, read_info, read_settings
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.settings import ReasonerSettings
from lrkit.resources import REASONER_FILE, resolve_checkpoint
from lrkit.runtime.processor import Processor
from lrkit.train.fresh import fresh_backbone, trail_processor
from lrkit.train.recipe import HUB_PREFIX, FreshBackbone, Recipe, overlay

# What a hub repository holds beside these is not needed: other formats of the same weights are left out.
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]


@dataclass(frozen=True)
class Start:
    """A reasoner ready to train."""

    reasoner: LatentReasoner
    processor: Processor
    base: str | None
    """Folder or hub id of the frozen weights; None where the run trains them and so stores them."""


def check_start(recipe: Recipe) -> ReasonerSettings:
    """The settings that the run will have; raises where it could not start.

    Raises:
        CheckpointError: `init` or a baseline is not there, or cannot be trained as asked.
        ConfigError: the settings do not go together.
    """
    folder = _find_folders(recipe)
    if folder is None or not (folder / REASONER_FILE).is_file():
        return recipe.model
    if recipe.trainable == "full" and (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"init: {recipe.init} is an adapter, which trainable: full cannot train; set trainable: lora or start from "
            "its base"
        )
    settings = overlay(read_settings(folder, read_info(folder)), recipe.model)
    if recipe.trainable == "full" or not (folder / "adapter_config.json").is_file():
        return settings
    own, asked = read_settings(folder, read_info(folder)).lora, settings.lora
    if asked != own:
        raise CheckpointError(
            f"init: {recipe.init} has an adapter of rank {own.rank}, alpha {own.alpha} and dropout {own.dropout}, "
            f"model.lora asks for {asked.rank}, {asked.alpha} and {asked.dropout}; leave these out or start from"
            " its base"
        )
    return settings


def _find_folders(recipe: Recipe) -> Path | None:
    """The folder of `init`, None without one; all folders that are missing are reported together."""
    problems: list[str] = []
    folder: Path | None = None
    if isinstance(recipe.init, str) and not recipe.init.startswith(HUB_PREFIX):
        try:
            folder = init_folder(recipe.init)
        except CheckpointError as error:
            problems.append(str(error))
    for mode, where in recipe.baselines.items():
        try:
            resolve_checkpoint(where)
        except CheckpointError as error:
            problems.append(f"baselines.{mode}: {error}")
    if problems:
        raise CheckpointError("\n".join(problems))
    return folder


def init_folder(init: str) -> Path:
    """The folder of a checkpoint by name or path, or of a plain Hugging Face model.

    Raises:
        CheckpointError: neither.
    """
    folder = Path(init)
    if (folder / "config.json").is_file() and not (folder / REASONER_FILE).is_file():
        return folder
    try:
        return resolve_checkpoint(init)
    except CheckpointError as error:
        hint = f"; a model of the hub is written {HUB_PREFIX}ORG/NAME" if "/" in init else ""
        raise CheckpointError(f"init: {error}{hint}") from error


def load_start(recipe: Recipe, settings: ReasonerSettings, dtype: torch.dtype) -> Start:
    """Builds or loads the reasoner, with the recipe's weights trainable. Random weights come from torch's generator.

    Raises:
        CheckpointError: files are missing, damaged or do not fit.
    """
    if isinstance(recipe.init, FreshBackbone):
        processor = trail_processor()
        backbone: Backbone = fresh_backbone(recipe.init, processor)  # pyright: ignore[reportAssignmentType]
        reasoner = build_reasoner(backbone, settings, processor.latent_id, None, recipe.trainable)
        return Start(reasoner, processor, None)
    hub_id = recipe.init.removeprefix(HUB_PREFIX) if recipe.init.startswith(HUB_PREFIX) else None
    folder = init_folder(recipe.init) if hub_id is None else _download(hub_id)
    processor = Processor.from_folder(folder)
    if (folder / REASONER_FILE).is_file():
        loaded = load_checkpoint(folder, recipe.trainable, settings, dtype)
        return Start(loaded.reasoner, processor, None if recipe.trainable == "full" else loaded.base)
    backbone = load_backbone(str(folder), dtype)
    rows = backbone.embedding_rows().shape[0]
    if processor.latent_id >= rows:
        raise CheckpointError(
            f"init: {recipe.init} has {rows} embedding rows and no room for {processor.format.tokens.latent}; "
            "enlarge its embedding first (resize_token_embeddings of transformers)"
        )
    reasoner = build_reasoner(backbone, settings, processor.latent_id, None, recipe.trainable)
    return Start(reasoner, processor, None if recipe.trainable == "full" else hub_id or str(folder))


def _download(hub_id: str) -> Path:
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_HUB_FILES))
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise CheckpointError(
            f"init: {hub_id} cannot be downloaded ({str(error).splitlines()[0]}); check the name and the network, or "
            "give the folder of a copy"
        ) from error
