"""Models of the Hugging Face hub: the copy on this machine, and its download where that was asked for. Torch-free.

Nothing but `download=True` makes lrkit use the network: a recipe's `init: hub:ORG/NAME`, `--download`, or
`allow_download=True` of the SDK.
"""

import re
from pathlib import Path

from lrkit.errors import CheckpointError, one_line, require

# What a repository holds beside these is not needed: other formats of the same weights, and code, are left out.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


_allowed = False


def allow_downloads(wanted: bool) -> None:
    """Whether this process may fetch models: what `--download` says. Not so unless it is called."""
    global _allowed
    _allowed = wanted


def is_hub_id(name: str) -> bool:
    """Is it written as the hub writes its models, ORG/NAME?"""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def hub_folder(hub_id: str, download: bool = False) -> Path:
    """The folder of a model's copy on this machine; with `download` it is brought here first.

    Raises:
        CheckpointError: it is not here, or cannot be downloaded.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub, download = require("huggingface_hub", "train"), download or _allowed
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_FILES, local_files_only=not download))
    except Exception as error:  # the package and those below it raise what they like
        if not download:
            raise CheckpointError(
                f"{hub_id} is a model of the hub that is not on this machine, and nothing is downloaded unasked; "
                "give --download (allow_download=True), or put a copy in its place"
            ) from error
        raise CheckpointError(
            f"{hub_id} cannot be downloaded ({one_line(error)}); check the name and the network, or give the folder of "
            "a copy"
        ) from error
