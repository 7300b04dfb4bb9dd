"""Are all files of a checkpoint folder there, whole, and made for each other? Torch-free: no weight is read.

Place in the pipeline: `lrkit validate CHECKPOINT` -> `check_checkpoint`. (lrkit/model/checkpoint.py loads it.)
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrkit.config import load_config
from lrkit.errors import CheckpointError, ConfigError
from lrkit.model.settings import SCHEMA_VERSION, ReasonerSettings
from lrkit.resources import REASONER_FILE
from lrkit.runtime.processor import Processor
from lrkit.runtime.prompt import read_json

_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_EXTRAS = "lrkit.safetensors"
# A header larger than this is no header; the limit is that of the safetensors package.
_MAX_HEADER_BYTES = 100_000_000


@dataclass
class CheckpointReport:
    """What a checkpoint folder holds."""

    folder: Path
    problems: list[str] = field(default_factory=list)
    """One sentence each; empty for a good checkpoint."""
    tensors: dict[str, int] = field(default_factory=dict)
    """File -> number of tensors in it."""
    sizes: dict[str, int] = field(default_factory=dict)
    """File -> bytes."""
    base: str | None = None
    """Folder or hub id of the backbone's weights; None where they are in this folder."""
    settings: ReasonerSettings | None = None
    """What the reasoner is set to."""

    def raise_if_bad(self) -> None:
        """Raise all problems at once.

        Raises:
            CheckpointError: with one line per problem.
        """
        if self.problems:
            raise CheckpointError("\n".join(self.problems))


def check_checkpoint(folder: Path) -> CheckpointReport:
    """Read every file but the weights' values; all problems are collected."""
    report = CheckpointReport(folder)
    try:
        info = read_json(folder / REASONER_FILE)
    except CheckpointError as error:
        report.problems.append(str(error))
        return report
    report.problems += _info_problems(folder, info)
    try:
        report.settings = load_config(ReasonerSettings, info.get("settings") or {})
    except ConfigError as error:
        report.problems += [f"{folder / REASONER_FILE}: {line}" for line in str(error).splitlines()]
    report.base = info.get("base")
    report.problems += _file_problems(folder, report.base)
    report.problems += _processor_problems(folder, info)
    for path in sorted(folder.glob("*.safetensors")):
        report.sizes[path.name] = path.stat().st_size
        try:
            report.tensors[path.name] = count_tensors(path)
        except CheckpointError as error:
            report.problems.append(str(error))
    return report


def _info_problems(folder: Path, info: dict[str, Any]) -> Iterator[str]:
    path = folder / REASONER_FILE
    if info.get("schema") != SCHEMA_VERSION:
        yield f"{path}: schema is {info.get('schema')}, this lrkit reads {SCHEMA_VERSION}; use the lrkit that wrote it"
    base = info.get("base")
    if isinstance(base, str) and base.startswith(".") and not (folder / base).is_dir():
        yield f"{path}: base {base!r} is not there; copy the backbone beside the checkpoint"
    baselines = info.get("baselines") or {}
    for mode, where in baselines.items():
        if not (folder / where / REASONER_FILE).is_file():
            yield f"{path}: the baseline for {mode} is to be in {where!r}, which is no checkpoint; copy it there"


def _file_problems(folder: Path, base: str | None) -> Iterator[str]:
    needed = ["config.json", _EXTRAS]
    adapter = [name for name in _ADAPTER if (folder / name).is_file()]
    if len(adapter) == 1:
        needed += _ADAPTER
    for name in needed:
        if not (folder / name).is_file():
            yield f"{folder}: has no {name}; copy the checkpoint again"
    if base is None and not any((folder / name).is_file() for name in _WEIGHTS):
        yield f"{folder}: has no {_WEIGHTS[0]}, and {REASONER_FILE} names no base; copy the checkpoint again"


def _processor_problems(folder: Path, info: dict[str, Any]) -> Iterator[str]:
    try:
        processor = Processor.from_folder(folder)
    except CheckpointError as error:
        yield from str(error).splitlines()
        return
    latent = info.get("latent_id")
    if latent != processor.latent_id:
        yield (
            f"{folder}: {REASONER_FILE} says that the latent token is {latent}, tokenizer.json that it is "
            f"{processor.latent_id}; the files are of two checkpoints, so copy both again"
        )


def count_tensors(path: Path) -> int:
    """Tensors in a safetensors file, from its header; the file's length is held against it.

    Raises:
        CheckpointError: the header is damaged, or the file is cut off or too long.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        raw = file.read(header_bytes) if header_bytes <= min(size - 8, _MAX_HEADER_BYTES) else b""
    try:
        header = json.loads(raw)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in entries), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path}: is no whole safetensors file (damaged header); copy it again") from error
    if 8 + header_bytes + end != size:
        raise CheckpointError(f"{path}: has {size} bytes where {8 + header_bytes + end} belong; copy it again")
    return len(entries)
