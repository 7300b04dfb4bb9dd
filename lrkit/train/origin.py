"""What a run depends on beside its recipe: the data's files, the checkpoint it starts from, the machine.

state.pt keeps it. --resume refuses other data or another start, because the run would silently become another one. It
notes another machine, because losses then differ in their last digits only.
"""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lrkit import __version__
from lrkit.checkpoints.checkpoint_folder import HOLD_WEIGHTS
from lrkit.errors import CheckpointError, ConfigError, os_sentence
from lrkit.files import sha256
from lrkit.provenance import cpu_model, installed_version

_PACKAGES = ("accelerate", "numpy", "peft", "pillow", "tokenizers", "torch", "transformers")
_READ = (".json", ".jinja", ".txt")
# These hold paths, dates and other runs, which do not change what is learned.
_PASSED_OVER = ("reasoner.json", "run.json")


@dataclass(frozen=True)
class Origin:
    """Digests and versions, as plain values."""

    data: dict[str, str] = field(default_factory=dict)
    """Part of the data -> digest of its file."""
    pictures: str = ""
    """Digest of the names and sizes of the data's pictures; empty where none is a file."""
    init: dict[str, str] = field(default_factory=dict)
    """File of the checkpoint, or of the base below it -> digest."""
    processes: int = 1
    """Processes that train side by side, each on its part of every update."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions, device, threads and number type."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for state.pt."""
        return asdict(self)


def environment(precision: str, device: torch.device) -> dict[str, Any]:
    """What can change the last digits of a loss. `precision` is accelerate's word for the number type."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()
    return {
        "lrkit": __version__,
        "python": platform.python_version(),
        **{package: installed_version(package) for package in _PACKAGES},
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def files_digest(folder: Path, weights: bool) -> dict[str, str]:
    """Digests of the files of a model's folder that training reads, with those of its weights where asked.

    Raises:
        CheckpointError: a file cannot be read.
    """
    found: dict[str, str] = {}
    try:
        for path in sorted(folder.iterdir()):
            wanted = path.suffix in _READ or (weights and path.suffix in HOLD_WEIGHTS)
            if wanted and path.is_file() and path.name not in _PASSED_OVER:
                found[path.name] = sha256(path)[0]
    except OSError as error:
        raise CheckpointError(os_sentence(error, folder)) from error
    return found


def sizes_digest(paths: Iterator[Path]) -> str:
    """Digest of names and sizes: quick, where there are a million pictures."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{os.stat(path).st_size if path.is_file() else None}\0".encode("utf-8", "replace"))
    return digest.hexdigest()


def compare(before: Origin, now: Origin, folder: Path) -> list[str]:
    """What differs in the machine, as notes.

    Raises:
        ConfigError: the data or the start differ; one line each.
    """
    problems = [*changed("data", before.data, now.data), *changed("init", before.init, now.init)]
    if problems:
        raise ConfigError("\n".join(f"{folder} cannot go on: {problem}" for problem in problems))
    notes: list[str] = []
    if before.pictures != now.pictures:
        notes.append("pictures of the data have other sizes than when the run began")
    if before.processes != now.processes:
        notes.append(
            f"the run goes on with another number of processes ({before.processes} before, now {now.processes})"
        )
    names = dict.fromkeys([*before.environment, *now.environment])
    pairs = [(name, before.environment.get(name), now.environment.get(name)) for name in names]
    if differences := [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]:
        notes.append(f"the run goes on under other conditions ({', '.join(differences)})")
    return [f"{note}; its losses are no longer bit for bit those of a run without a break" for note in notes]


def changed(what: str, before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each file whose digest is another one."""
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield (
                f"{what}: {name} has changed since the run began (sha256 {_short(old)} then, {_short(new)} now); put "
                "the old file back, or start a new run with -o"
            )


def _short(digest: str | None) -> str:
    return "no such file" if digest is None else digest[:16]
