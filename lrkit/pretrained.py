"""What a pretrained model's folder holds, and what to say where it is not there: which files, and where they belong.

Part of the ground: every verb that takes a model, and every file that names one, says the same.
"""

import re
from pathlib import Path

from lrkit.errors import clean

HUB_PREFIX = "hub:"
"""Before the id of a model that a recipe may fetch."""

MODEL_FILES = (
    "config.json, model.safetensors (or its shards and model.safetensors.index.json), tokenizer.json, "
    "tokenizer_config.json, preprocessor_config.json (or processor_config.json) and its chat template"
)
"""What lrkit reads of a model of the hub, in words."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(name: str) -> bool:
    """Is it written as the hub writes its models, ORG/NAME?"""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def hub_id_in(name: str) -> str | None:
    """The hub id in hub:ORG/NAME or ORG/NAME; None for other names."""
    hub_id = name.removeprefix(HUB_PREFIX)
    return hub_id if is_hub_id(hub_id) else None


def place_by_hand(folder: Path | str) -> str:
    """How a model comes to its folder without the network; the end of a sentence."""
    return f"put its files into {clean(str(folder))} by hand: {MODEL_FILES}"
