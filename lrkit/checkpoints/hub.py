"""Models of the Hugging Face hub: the copy on this machine, and its download where that was asked for. Torch-free.

Nothing but `download=True` makes lrkit use the network: a recipe's `init: hub:ORG/NAME`, `--download`, or
`allow_download=True` of the SDK.
"""

from pathlib import Path
from typing import Any

from lrkit.errors import CheckpointError, MissingExtraError, one_line, require
from lrkit.pretrained import MODEL_FILES, place_by_hand

# What a repository holds beside these is not needed: other formats of the same weights, and code, are left out.
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_SMALL_FILES = ["config.json", "preprocessor_config.json", "processor_config.json"]
_allowed = False


def allow_downloads(wanted: bool) -> None:
    """Whether this process may fetch models: what `--download` says. Not so unless it is called."""
    global _allowed
    _allowed = wanted


def hub_folder(hub_id: str, download: bool = False, beside: Path | None = None) -> Path:
    """The folder of a model's copy on this machine; with `download` it is brought here first. `beside` is where the
    asking checkpoint would find a copy that was put there by hand.

    Raises:
        CheckpointError: it is not here, or cannot be downloaded.
        MissingExtraError: it is to be downloaded, and huggingface_hub is not installed.
    """
    download = download or _allowed
    try:
        hub = require("huggingface_hub", "train")
    except MissingExtraError:
        if download:
            raise
        raise CheckpointError(_not_here(hub_id, None, beside)) from None
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_FILES, local_files_only=not download))
    except Exception as error:  # the package and those below it raise what they like
        if not download:
            raise CheckpointError(_not_here(hub_id, hub, beside)) from error
        raise CheckpointError(
            f"{hub_id} is neither in {_cache(hub, hub_id)} nor can it be downloaded ({one_line(error, 160)}); check "
            f"the name and the network, or {_by_hand(beside)}"
        ) from error


def config_folder(hub_id: str) -> Path:
    """The folder of a model's small files (config.json and how it cuts pictures), fetched from the hub. No weights.

    Raises:
        CheckpointError: they cannot be fetched.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub = require("huggingface_hub", "train")
    try:
        return Path(hub.snapshot_download(hub_id, allow_patterns=_SMALL_FILES))
    except Exception as error:  # the package and those below it raise what they like
        raise CheckpointError(
            f"{hub_id} is not on this machine, and its config.json cannot be fetched ({one_line(error, 160)}); check "
            "the name and the network"
        ) from error


def _not_here(hub_id: str, hub: Any, beside: Path | None) -> str:
    searched = [] if hub is None else [str(_cache(hub, hub_id))]
    searched += [] if beside is None else [str(beside)]
    places = f" (searched: {' and '.join(searched)})" if searched else ""
    return (
        f"{hub_id} is a model of the hub that is not on this machine{places}, and nothing is downloaded unasked; give "
        f"--download (allow_download=True), or {_by_hand(beside)}"
    )


def _by_hand(beside: Path | None) -> str:
    if beside is not None:
        return place_by_hand(beside)
    return f"put its files into a folder by hand and give that folder instead: {MODEL_FILES}"


def _cache(hub: Any, hub_id: str) -> Path:
    """Where huggingface_hub keeps its copy of a model."""
    return Path(hub.constants.HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}"
