"""What a checkpoint folder says of itself: reasoner.json, its settings, where its backbone is. Torch-free.

A folder with a config.json and no reasoner.json is a plain Hugging Face model: a checkpoint without latents. It can be
asked in the modes cot and direct, and training can start from it.

`base` and `baselines` in reasoner.json are paths relative to the folder. They may lead out of it, because a checkpoint
shares its backbone with others beside it. `base` may also be a model of the hub, ORG/NAME. Absolute paths are refused,
and so are shards of weights that are not in the folder itself.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from lrkit.checkpoints.hub import hub_folder
from lrkit.config import load_config
from lrkit.contract.settings import SCHEMA_VERSION, ReasonerSettings
from lrkit.errors import CheckpointError, ConfigError, shown
from lrkit.files import read_json
from lrkit.pretrained import is_hub_id, place_by_hand

INFO_FILE = "reasoner.json"
CONFIG_FILE = "config.json"
EXTRAS_FILE = "lrkit.safetensors"
OWN_BACKBONE = "backbone."
"""In `EXTRAS_FILE`, before the name of a weight that stands in place of the base's, such as one of the tower."""
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HOLD_WEIGHTS = (".safetensors", ".gguf")
"""Endings of the files that hold weights."""
BASELINES = ("cot", "direct")
MAX_ID = 1 << 24
"""Above every vocabulary."""

PLAIN_SETTINGS: Mapping[str, Any] = {
    "think": {"max_latent_steps": 0},
    "replay": {"num_tokens": 0},
    "routing": {"depth": 0},
}
"""Of a plain model: it has no latents."""


def is_plain(folder: Path) -> bool:
    """Is it a plain Hugging Face folder?"""
    return not (folder / INFO_FILE).exists() and (folder / CONFIG_FILE).is_file()


def read_info(folder: Path) -> dict[str, Any]:
    """reasoner.json of a checkpoint. Of a plain Hugging Face folder: what stands in its place, with latent_id None.

    Raises:
        CheckpointError: no such folder, no such file, no JSON, a schema that this version does not know, or a value of
            a wrong type.
    """
    if is_plain(folder):
        return {"schema": SCHEMA_VERSION, "base": None, "latent_id": None, "settings": dict(PLAIN_SETTINGS)}
    file = folder / INFO_FILE
    if not file.exists():
        seen = "is not there" if not folder.exists() else f"has no {INFO_FILE}"
        raise CheckpointError(
            f"{folder} {seen}; give a checkpoint that `lrkit train` wrote, a Hugging Face folder, or the name tiny"
        )
    info = read_json(file, CheckpointError)
    if info.get("schema") != SCHEMA_VERSION or isinstance(info.get("schema"), bool):
        raise CheckpointError(
            f"{file} has schema {shown(info.get('schema'))}, this lrkit reads {SCHEMA_VERSION}; use the lrkit that "
            "wrote it"
        )
    for key, right, allowed in _rules(info):
        if not right:
            raise CheckpointError(f"{file}: {key} is {shown(info.get(key))} where {allowed}; copy the file again")
    return info


def _rules(info: Mapping[str, Any]) -> list[tuple[str, bool, str]]:
    """(key, whether its value can be used, what belongs there)."""
    base, latent, baselines = info.get("base"), info.get("latent_id"), info.get("baselines")
    known = isinstance(baselines, dict) and all(name in BASELINES for name in baselines)
    return [
        ("base", base is None or isinstance(base, str), "a folder, a model of the hub or null belongs"),
        ("latent_id", type(latent) is int and 0 <= latent < MAX_ID, "a token id belongs"),
        ("settings", isinstance(info.get("settings", {}), dict), "a mapping belongs"),
        ("baselines", baselines is None or (known and all(isinstance(where, str) for where in baselines.values())),
         "folders by mode (cot, direct) belong"),
    ]  # fmt: skip


def read_settings(folder: Path, info: Mapping[str, Any]) -> ReasonerSettings:
    """The settings in reasoner.json.

    Raises:
        CheckpointError: a setting is unknown or out of its range.
    """
    try:
        return load_config(ReasonerSettings, info.get("settings", {}))
    except ConfigError as error:
        first, *more = str(error).splitlines()
        others = f", and {len(more)} more" if more else ""
        raise CheckpointError(f"{folder / INFO_FILE}: {first}{others}; use the lrkit that wrote it") from error


def base_of(folder: Path, info: Mapping[str, Any]) -> str:
    """Folder or hub id of the backbone's weights, as a new checkpoint would name it.

    Raises:
        CheckpointError: reasoner.json names an absolute path, or a folder that is not there.
    """
    base = info.get("base")
    if base is None:
        return str(folder)
    local = inside_or_beside(folder, base, "base")
    if local.is_dir():
        return str(local)
    if not is_hub_id(base):
        raise CheckpointError(
            f"{folder} needs the backbone in {local}, which is not there; copy that folder, or {place_by_hand(local)}"
        )
    return base


def base_folder(folder: Path, info: Mapping[str, Any], download: bool = False) -> Path:
    """The folder that holds the backbone's weights; a model of the hub is its copy on this machine.

    Raises:
        CheckpointError: as `base_of`, and as `hub_folder`.
    """
    base = base_of(folder, info)
    if info.get("base") is None or Path(base).is_dir():
        return Path(base)
    return hub_folder(base, download, beside=inside_or_beside(folder, base, "base"))


def baselines_of(folder: Path, info: Mapping[str, Any]) -> dict[str, Path]:
    """Mode -> folder of the checkpoint to ask in it.

    Raises:
        CheckpointError: an absolute path.
    """
    declared: Mapping[str, str] = info.get("baselines") or {}
    return {mode: inside_or_beside(folder, where, f"baselines.{mode}") for mode, where in declared.items()}


def download_bases(folder: Path) -> None:
    """Brings the backbones that a checkpoint and its baselines need from the hub to this machine, where they are of it.

    Raises:
        CheckpointError: one cannot be downloaded.
    """
    info = read_info(folder)
    base_folder(folder, info, download=True)
    for baseline in baselines_of(folder, info).values():
        base_folder(baseline, read_info(baseline), download=True)


def inside_or_beside(folder: Path, where: str, key: str) -> Path:
    """The folder that a relative path of reasoner.json leads to.

    Raises:
        CheckpointError: an absolute path, or none that the system can have.
    """
    absolute = PurePosixPath(where).is_absolute() or PureWindowsPath(where).drive or where.startswith("\\")
    if absolute or not where.strip() or not where.isprintable():
        raise CheckpointError(
            f"{folder / INFO_FILE}: {key} is {shown(where)}, which is no path relative to the checkpoint; put a copy "
            "beside it and name that"
        )
    try:
        return (folder / where).resolve()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder / INFO_FILE}: {key} leads in a circle; copy the checkpoint again") from error
