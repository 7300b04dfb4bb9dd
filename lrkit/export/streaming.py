"""The weights of a checkpoint, read from its files one matrix at a time with the adapter merged in: an export of a
large backbone never holds all of it.

Place in the pipeline: subject.py opens a checkpoint by `stream_source`, and reads the whole model where it gives None
(files of another kind, adapters beyond plain LoRA).
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from lrkit.errors import CheckpointError
from lrkit.export.source import Family, Parts, Source, array, family_of
from lrkit.model.checkpoint import ADAPTER_FILE, EXTRAS_FILE, WEIGHTS, base_of, read_info, read_settings

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_ADAPTED = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_BEYOND = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save",
    "layer_replication", "target_parameters", "trainable_token_indices", "lora_bias",
)  # fmt: skip
"""Options of peft that change what is merged; with any of them peft does it."""


@dataclass(frozen=True)
class Stored:
    """One tensor in one safetensors file."""

    file: Path
    name: str

    def read(self) -> Tensor:
        """float32. The file is opened anew each time, so that what was read does not stay in memory."""
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.name).to(torch.float32)


@dataclass(frozen=True)
class StoredWeights:
    """A backbone's weights by their names in transformers, with plain LoRA merged."""

    tensors: Mapping[str, Stored]
    adapted: Mapping[str, tuple[Stored, Stored]]
    """Weight -> (A, B)."""
    alpha: float
    """LoRA's scale is alpha / rank, or alpha / sqrt(rank) where `root` is set."""
    root: bool = False

    def read(self, name: str) -> np.ndarray:
        """The merged weight, float32.

        Raises:
            CheckpointError: the files do not hold it.
        """
        if name not in self.tensors:
            raise CheckpointError(f"the backbone's files lack {name}; copy the checkpoint again")
        weight = self.tensors[name].read()
        if name not in self.adapted:
            return array(weight)
        down, up = (stored.read() for stored in self.adapted[name])
        rank = down.shape[0]
        return array(weight + (up @ down) * (self.alpha / (rank**0.5 if self.root else rank)))


def stream_source(folder: Path) -> Source | None:
    """The source of a checkpoint that reads its files as it is asked; None where only transformers and peft know how.

    Raises:
        CheckpointError: something is missing, damaged or does not fit together.
        ExportError: no program can be built for this backbone.
    """
    info = read_info(folder)
    base = _local(base_of(folder, info))
    if base is None or not _plain(folder):
        return None
    try:
        config = _config(base)
        family = family_of(str(config.model_type))
        weights = _open(base, folder, family.stored_name)
        extras = {name: array(tensor) for name, tensor in load_file(folder / EXTRAS_FILE).items()}
        settings = read_settings(folder, info)
        return assemble(family, config, weights.read, settings, int(info["latent_id"]), extras)
    except (OSError, SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{folder} cannot be read ({str(error).splitlines()[0]}); copy the checkpoint again"
        ) from error


def assemble(
    family: Family,
    config: Any,
    read: Callable[[str], np.ndarray],
    settings: Any,
    latent_id: int,
    extras: Mapping[str, np.ndarray],
) -> Source:
    """A source from weights that are read as asked for; only the vision tower, which is traced, is made whole."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        tower = family.new_tower(config)
    state = {name: torch.from_numpy(read(f"{family.tower}.{name}")) for name in tower.state_dict()}
    tower.load_state_dict(state, assign=True)
    tied = bool(config.tie_word_embeddings)
    return family.source(Parts(config, read, tower.eval(), tied, settings, latent_id, extras))


def _local(base: str) -> Path | None:
    """The folder of a backbone; one of the hub is downloaded, as transformers would. None where that fails."""
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError):  # offline, no such name: transformers says it best
        return None


def _plain(folder: Path) -> bool:
    """Whether the adapter, if there is one, is plain LoRA."""
    file = folder / ADAPTER_FILE
    if not file.is_file():
        return True
    config = json.loads(file.read_text(encoding="utf-8"))
    simple = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    return simple and not any(config.get(name) for name in _BEYOND)


def _config(base: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(base))


def _open(base: Path, folder: Path, canonical: Callable[[str], str]) -> StoredWeights:
    tensors = {canonical(stored.name): stored for stored in _listed(base)}
    if not (folder / ADAPTER_FILE).is_file():
        return StoredWeights(tensors, {}, 0.0)
    config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    sides: dict[str, dict[str, Stored]] = {}
    for stored in _names_in(folder / ADAPTER_WEIGHTS):
        found = _ADAPTED.fullmatch(stored.name)
        name = f"{found['module']}.weight" if found else stored.name
        if found is None or name not in tensors:
            raise CheckpointError(
                f"the adapter in {folder} does not fit its backbone: {stored.name} has no place in it; give the "
                "adapter that was trained on this backbone"
            )
        sides.setdefault(name, {})[found["side"]] = stored
    adapted = {name: (pair["A"], pair["B"]) for name, pair in sides.items()}
    return StoredWeights(tensors, adapted, float(config["lora_alpha"]), bool(config.get("use_rslora")))


def _listed(base: Path) -> list[Stored]:
    """All tensors of a backbone, in one file or in shards."""
    whole, index = (base / name for name in WEIGHTS)
    if whole.is_file() or not index.is_file():
        return _names_in(whole)
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [Stored(base / file, name) for name, file in files.items()]


def _names_in(file: Path) -> list[Stored]:
    with safe_open(file, "pt") as opened:
        return [Stored(file, name) for name in opened.keys()]  # noqa: SIM118
