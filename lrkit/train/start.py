"""What a run starts from: random weights, a checkpoint, or a plain Hugging Face model.

Place in the pipeline: `check_start` (lrkit/train/checks.py), which loads nothing -> `load_start` -> the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from lrkit.checkpoints.hub import hub_folder
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import CheckpointError
from lrkit.families.table import read_layout
from lrkit.model.build import build_reasoner
from lrkit.model.checkpoint import load_checkpoint, not_finite
from lrkit.model.open_backbone import load_backbone
from lrkit.model.reasoner import LatentReasoner
from lrkit.pretrained import HUB_PREFIX
from lrkit.resources import REASONER_FILE
from lrkit.runtime.checks.checkpoint_files import check_fit, check_model
from lrkit.runtime.encode.processor import Processor
from lrkit.train.checks import init_folder
from lrkit.train.fresh import fresh_backbone, fresh_processor
from lrkit.train.origin import files_digest
from lrkit.train.recipe import FreshBackbone, Recipe


@dataclass(frozen=True)
class Start:
    """A reasoner ready to train."""

    reasoner: LatentReasoner
    processor: Processor
    base: str | None
    """Folder or hub id of the frozen weights; None where the run trains them and so stores them."""
    files: Callable[[], dict[str, str]]
    """Digests of what this was read from; takes a second per gigabyte."""


def load_start(recipe: Recipe, settings: ReasonerSettings, dtype: torch.dtype) -> Start:
    """Builds or loads the reasoner, with the recipe's weights trainable. Random weights come from torch's generator.

    Raises:
        CheckpointError: files are missing, damaged, do not fit or hold NaN or infinity.
    """
    if isinstance(recipe.init, FreshBackbone):
        processor = _fitted(fresh_processor(recipe.data.words() or (), recipe.init.family), recipe, settings)
        backbone = fresh_backbone(recipe.init, processor)
        reasoner = build_reasoner(backbone, settings, processor.latent_id, None, recipe.trainable)
        return Start(reasoner, processor, None, dict)
    hub_id = recipe.init.removeprefix(HUB_PREFIX) if recipe.init.startswith(HUB_PREFIX) else None
    folder = init_folder(recipe.init) if hub_id is None else hub_folder(hub_id, download=True)
    processor = _fitted(Processor.from_folder(folder), recipe, settings)
    frozen = recipe.trainable != "full"
    if (folder / REASONER_FILE).is_file():
        loaded = load_checkpoint(folder, recipe.trainable, settings, dtype)
        check_fit(processor, loaded.checked)
        return Start(
            loaded.reasoner, processor, loaded.base if frozen else None, lambda: _digests(folder, loaded.base, frozen)
        )
    check_model(processor, read_layout(folder), folder, plain=True)
    backbone = load_backbone(str(folder), dtype)
    rows = backbone.embedding_rows().shape[0]
    if processor.latent_id >= rows:
        raise CheckpointError(
            f"init: {recipe.init} has {rows} embedding rows and no room for {processor.format.tokens.latent}; "
            "enlarge its embedding first (resize_token_embeddings of transformers)"
        )
    reasoner = build_reasoner(backbone, settings, processor.latent_id, None, recipe.trainable)
    if name := not_finite(reasoner):
        raise CheckpointError(f"init: {folder}: {name} holds NaN or infinity; `lrkit validate` names the file")
    base = hub_id or str(folder) if frozen else None
    return Start(reasoner, processor, base, lambda: _digests(folder, None, frozen))


def _fitted(processor: Processor, recipe: Recipe, settings: ReasonerSettings) -> Processor:
    """The processor with the recipe's limit on pictures, which it saves into the run's checkpoints, and with windows
    where replay is fine."""
    processor.geometry = processor.geometry.with_max_pixels(recipe.max_pixels)
    return processor.see_for(settings.replay)


def _digests(folder: Path, base: str | None, frozen: bool) -> dict[str, str]:
    """Of a checkpoint and of the base below it. Weights that are trained are in the run's own state: not theirs."""
    found = files_digest(folder, frozen)
    if base is not None and Path(base).is_dir() and Path(base) != folder:
        found |= {f"base/{name}": digest for name, digest in files_digest(Path(base), frozen).items()}
    return found
