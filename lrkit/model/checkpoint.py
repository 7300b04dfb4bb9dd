"""The checkpoint folder, written whole or not at all, and read back into a reasoner.

    config.json                                    the backbone's; with model.safetensors when the folder carries its
    weights adapter_config.json, adapter_model.safetensors LoRA in peft's format; absent in a base
    lrkit.safetensors                              routers, step encodings, TokenSR, latent rows
    tokenizer.json, ..., prompt.json               the processor's files (lrkit/runtime/processor.py)
    reasoner.json                                  schema version, settings, where the base is, provenance, metrics

Place in the pipeline: train/loop.py saves; the torch engine, export and further training load.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lrkit.config import load_config
from lrkit.errors import CheckpointError, ConfigError
from lrkit.model.backbones.table import load_backbone, no_progress_bars
from lrkit.model.build import Trainable, build_reasoner, extra_state, load_extra_state
from lrkit.model.lora import Adapter
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.settings import SCHEMA_VERSION, ReasonerSettings

INFO_FILE = "reasoner.json"
EXTRAS_FILE = "lrkit.safetensors"
ADAPTER_FILE = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


class SavesItself(Protocol):
    """The processor, seen from here: it writes its own files."""

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint in memory."""

    reasoner: LatentReasoner
    folder: Path
    """Where it was read; the processor's files are here too."""
    info: dict[str, Any]
    """reasoner.json."""
    base: str
    """Folder or hub id of the backbone's weights."""


def save_checkpoint(
    folder: Path,
    reasoner: LatentReasoner,
    processor: SavesItself,
    base: str | None,
    info: Mapping[str, Any],
) -> None:
    """Writes `folder` through a temporary neighbour, replacing an older one only when the new one is complete.

    `base` is the folder or hub id of the backbone's weights; None stores them here. `info` joins reasoner.json:
    stage, provenance, metrics, baselines (mode -> folder, relative to this one).
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.writing"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with no_progress_bars():
        saved = reasoner.model if base is None else reasoner.model.config
        saved.save_pretrained(staging)  # pyright: ignore
    where = _relative(base, folder)
    if reasoner.adapter is not None:
        reasoner.adapter.save(staging, where or "")
    save_file(extra_state(reasoner), staging / EXTRAS_FILE)
    processor.save(staging)
    head = {
        "schema": SCHEMA_VERSION,
        "base": where,
        "latent_id": reasoner.latent.token_id,
        "settings": reasoner.settings.model_dump(mode="json"),
    }
    (staging / INFO_FILE).write_text(json.dumps({**head, **info}, indent=2) + "\n")
    for file in staging.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    replace_folder(staging, folder)


def replace_folder(staging: Path, folder: Path) -> None:
    """Puts a complete `staging` folder in the place of `folder`; the old one goes only once the new one stands."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = folder.parent / f".{folder.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, so that it still finds the base and the baselines it was made for.

    Raises:
        CheckpointError: `source` is no checkpoint, or its base is not there.
    """
    info = read_info(source)
    target = target.absolute()
    base = base_of(source, info)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.writing"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging)
    info["base"] = _relative(base, target) if info["base"] is not None else None
    baselines = info.get("baselines", {})
    info["baselines"] = {mode: _relative(str((source / where).resolve()), target) for mode, where in baselines.items()}
    (staging / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n")
    adapter = staging / ADAPTER_FILE
    if adapter.is_file():
        config = {**json.loads(adapter.read_text()), "base_model_name_or_path": info["base"]}
        adapter.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    replace_folder(staging, target)


def read_info(folder: Path) -> dict[str, Any]:
    """reasoner.json of a checkpoint.

    Raises:
        CheckpointError: no such folder, no such file, no JSON, or a schema that this version does not know.
    """
    file = folder / INFO_FILE
    if not file.is_file():
        seen = "is not there" if not folder.exists() else f"has no {INFO_FILE}"
        raise CheckpointError(f"{folder} {seen}; give a checkpoint that `lrkit train` wrote, or the name tiny")
    try:
        info = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON ({error}); copy the checkpoint again") from error
    if info.get("schema") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema {info.get('schema')}, this lrkit reads {SCHEMA_VERSION}; use the lrkit that wrote it"
        )
    return info


def read_settings(folder: Path, info: Mapping[str, Any]) -> ReasonerSettings:
    """The settings in reasoner.json."""
    try:
        return load_config(ReasonerSettings, info.get("settings", {}))
    except ConfigError as error:
        raise CheckpointError(f"{folder / INFO_FILE}: {error}") from error


def load_checkpoint(
    path: Path | str,
    trainable: Trainable = "none",
    settings: ReasonerSettings | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedCheckpoint:
    """Reads a checkpoint. `settings` other than its own (a recipe that goes on from it) may add or drop extra weights.

    Raises:
        CheckpointError: something is missing, damaged or does not fit together.
    """
    folder = Path(path)
    info = read_info(folder)
    base = base_of(folder, info)
    try:
        backbone = load_backbone(base, dtype)
        adapter = Adapter.load(backbone, folder) if (folder / ADAPTER_FILE).is_file() else None
        chosen = settings or read_settings(folder, info)
        reasoner = build_reasoner(backbone, chosen, int(info["latent_id"]), adapter, trainable)
        extras = load_file(folder / EXTRAS_FILE)
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({str(error).splitlines()[0]}); copy the checkpoint again"
        ) from error
    load_extra_state(reasoner, extras, missing_ok=settings is not None)
    return LoadedCheckpoint(reasoner.eval(), folder, info, base)


def base_of(folder: Path, info: Mapping[str, Any]) -> str:
    """Folder or hub id of the backbone's weights.

    Raises:
        CheckpointError: the checkpoint says that it carries them, or names a folder, and they are not there.
    """
    base = info.get("base")
    if base is None:
        if not any((folder / name).is_file() for name in WEIGHTS):
            raise CheckpointError(f"{folder} has no {WEIGHTS[0]}; copy the checkpoint again")
        return str(folder)
    local = (folder / base).resolve()
    if local.is_dir():
        return str(local)
    if str(base).startswith("."):
        raise CheckpointError(
            f"{folder} needs the backbone in {local}, which is not there; copy it beside the checkpoint"
        )
    return str(base)


def _relative(base: str | None, folder: Path) -> str | None:
    """A local base, as seen from the checkpoint's folder (so that the two can move together); a hub id as it is."""
    if base is None or not Path(base).is_dir():
        return base
    return os.path.relpath(Path(base).absolute(), folder)
