"""The checkpoint folder, written whole or not at all, and read back into a reasoner.

    config.json                                    the backbone's; with model.safetensors when its weights are here
    adapter_config.json, adapter_model.safetensors LoRA in peft's format; absent in a base
    lrkit.safetensors                              routers, step encodings, TokenSR, latent rows; weights of the
                                                   backbone in place of the base's
    tokenizer.json, ..., prompt.json               the processor's files (lrkit/runtime/encode/processor.py)
    reasoner.json                                  schema version, settings, where the base is, provenance, metrics

Place in the pipeline: train/loop.py saves; the torch engine, export and further training load.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file

from lrkit.checkpoints.checkpoint_folder import (
    ADAPTER_FILE,
    EXTRAS_FILE,
    INFO_FILE,
    OWN_BACKBONE,
    base_of,
    baselines_of,
    is_plain,
    read_info,
)
from lrkit.checkpoints.whole_weights import CheckedWeights, check_weights
from lrkit.contract.settings import SCHEMA_VERSION, ReasonerSettings
from lrkit.errors import CheckpointError, LrkitError, one_line, os_sentence
from lrkit.files import read_json, write_json
from lrkit.folders import staged_folder
from lrkit.model.build import Trainable, build_reasoner, extra_state, load_extra_state
from lrkit.model.lora import Adapter
from lrkit.model.open_backbone import load_backbone, no_progress_bars
from lrkit.model.reasoner import LatentReasoner


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
    checked: CheckedWeights
    """What its files hold."""


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
    where = _relative(base, folder)
    head = {
        "schema": SCHEMA_VERSION,
        "base": where,
        "latent_id": reasoner.latent.token_id,
        "settings": reasoner.settings.model_dump(mode="json"),
    }
    with staged_folder(folder, replace=True) as staging:
        with no_progress_bars():
            saved = reasoner.model if base is None else reasoner.model.config
            saved.save_pretrained(staging)  # pyright: ignore
        if reasoner.adapter is not None:
            reasoner.adapter.save(staging, where or "")
        extras = extra_state(reasoner)
        if base is None:  # they are among the backbone's, whole
            extras = {name: tensor for name, tensor in extras.items() if not name.startswith(OWN_BACKBONE)}
        save_file(extras, staging / EXTRAS_FILE)
        processor.save(staging)
        write_json(staging / INFO_FILE, {**head, **info})
        for file in staging.rglob("*"):
            if file.is_file():
                file.chmod(0o644)  # safetensors writes files that only their owner may read


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copies a checkpoint, so that it still finds the base and the baselines it was made for.

    Raises:
        CheckpointError: `source` is no checkpoint, or its base is not there.
        FileError: the copy cannot be written.
    """
    info = read_info(source)
    target = target.absolute()
    with staged_folder(target, replace=True) as staging:
        shutil.copytree(source, staging, dirs_exist_ok=True)
        if is_plain(source):
            return
        info["base"] = _relative(base_of(source, info), target) if info.get("base") is not None else None
        baselines = baselines_of(source, info)
        info["baselines"] = {mode: _relative(str(where), target) for mode, where in baselines.items()}
        write_json(staging / INFO_FILE, info)
        if (source / ADAPTER_FILE).is_file():
            config = read_json(source / ADAPTER_FILE, CheckpointError) | {"base_model_name_or_path": info["base"]}
            write_json(staging / ADAPTER_FILE, config, sort_keys=True)


def load_checkpoint(
    path: Path | str,
    trainable: Trainable = "none",
    settings: ReasonerSettings | None = None,
    dtype: torch.dtype | None = None,
    allow_download: bool = False,
) -> LoadedCheckpoint:
    """Reads a checkpoint, or a plain Hugging Face folder as one without latents. `settings` other than its own (a
    recipe that goes on from it) may add or drop extra weights. Only with `allow_download` the network is used.

    Raises:
        CheckpointError: something is missing, damaged, does not fit together or holds NaN or infinity.
    """
    folder = Path(path)
    checked = check_weights(folder, allow_download, settings)
    try:
        backbone = load_backbone(str(checked.base), dtype, folder)
        chosen = settings or checked.settings
        adapter = Adapter.load(backbone, folder, checked.settings.lora) if checked.adapter else None
        reasoner = build_reasoner(backbone, chosen, checked.latent_id, adapter, trainable)
        reasoner.replaced = tuple(dict.fromkeys([*checked.replaced, *reasoner.replaced]))
        if checked.extras:
            load_extra_state(reasoner, load_file(folder / EXTRAS_FILE), missing_ok=settings is not None)
    except LrkitError:
        raise
    except MemoryError as error:
        raise CheckpointError(os_sentence(error, folder)) from error
    except Exception as error:  # transformers, peft, safetensors and torch raise what they like
        raise CheckpointError(f"{folder} cannot be loaded ({one_line(error)}); copy the checkpoint again") from error
    if name := not_finite(reasoner):
        raise CheckpointError(f"{folder}: {name} holds NaN or infinity; `lrkit validate` names the file")
    return LoadedCheckpoint(reasoner.eval(), folder, dict(checked.info), base_of(folder, checked.info), checked)


def not_finite(reasoner: LatentReasoner) -> str | None:
    """The first weight that holds a value which is no number; None where all are."""
    for name, tensor in reasoner.state_dict().items():
        # One pass that takes no memory; only a sum that is no number is looked at again.
        odd = tensor.is_floating_point() and not bool(tensor.sum(dtype=torch.float32).isfinite())
        if odd and not bool(tensor.isfinite().all()):
            return name
    return None


def _relative(base: str | None, folder: Path) -> str | None:
    """A local base, as seen from the checkpoint's folder (so that the two can move together); a hub id as it is."""
    if base is None or not Path(base).is_dir():
        return base
    return os.path.relpath(Path(base).absolute(), folder)
