"""The families lrkit knows: one row each, from the `model_type` of a checkpoint's config.json to the class that
wraps it."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from lrkit.errors import CheckpointError
from lrkit.model.backbones.protocol import Backbone
from lrkit.registry import Registry

BACKBONES: Registry[type[Backbone]] = Registry(
    "backbone",
    {"qwen2_vl": "lrkit.model.backbones.qwen2_vl:Qwen2VLBackbone"},
)


def model_type_of(path: str) -> str:
    """`model_type` of a local folder or a hub id.

    Raises:
        CheckpointError: no config.json, or it names no model type.
    """
    folder = Path(path)
    if folder.is_dir():
        file = folder / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{path} has no config.json, so it holds no backbone; give a folder that transformers can load"
            )
        model_type = json.loads(file.read_text()).get("model_type")
        if not model_type:
            raise CheckpointError(f"{file} names no model_type; give a folder that transformers can load")
        return str(model_type)
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(path).model_type)
    except OSError as error:
        raise CheckpointError(
            f"{path} is neither a folder here nor a model that can be downloaded; give a local folder or a hub id"
        ) from error


def load_backbone(path: str, dtype: torch.dtype | None = None) -> Backbone:
    """Loads the backbone of a local folder or hub id through its family's row.

    Raises:
        CheckpointError: nothing loadable there.
        UnknownNameError: a family without a row; the message lists the rows.
    """
    family = BACKBONES.load(model_type_of(path))
    with no_progress_bars():
        return family.from_pretrained(path, dtype)  # pyright: ignore


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
