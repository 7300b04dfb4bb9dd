"""The families lrkit knows: one row each, from the `model_type` of a checkpoint's config.json to the class that
wraps it."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from lrkit.checkpoints.whole_weights import check_backbone
from lrkit.families.layout import Layout, read_layout
from lrkit.model.backbone import Backbone
from lrkit.registry import Registry

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    {"qwen2_vl": "lrkit.families.qwen2_vl.backbone:Qwen2VLBackbone"},
)


def load_backbone(path: str, dtype: torch.dtype | None = None) -> Backbone:
    """Loads the backbone in a local folder through its family's row. transformers gets the config as lrkit has read it.

    Raises:
        CheckpointError: nothing loadable there, or a family without a row; the message lists the rows.
    """
    layout = read_layout(Path(path))
    check_backbone(Path(path), layout)
    family = BACKBONES.load(layout.family)
    with no_progress_bars():
        return family.from_pretrained(path, dtype, layout.config)  # pyright: ignore


def config_of(layout: Layout) -> Any:
    """The config object of transformers for a backbone, without its weights."""
    return BACKBONES.load(layout.family).config_from(layout.config)  # pyright: ignore


@contextmanager
def no_progress_bars() -> Generator[None]:
    """Keeps transformers from drawing bars over lrkit's own output; restores its setting afterwards."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()
