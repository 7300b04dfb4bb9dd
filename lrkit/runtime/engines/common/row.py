"""What the table of engines holds of each: how it is opened, its own options, and whether it can run here. Torch-free.

Place in the pipeline: an engine's file makes its `EngineRow` -> engines/table.py -> `Reasoner.load`, `lrkit doctor`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.config import Config
from lrkit.gpus import Gpus


@dataclass(frozen=True)
class EngineState:
    """Whether an engine can answer questions on this machine."""

    name: str
    """As `--engine` takes it; torch runs checkpoints."""
    usable: bool
    version: str | None
    """Of its package; None where it is not installed."""
    runs_on: str
    """Devices, or why it cannot run."""
    command: str | None
    """What brings it; None where that is no command, or nothing is missing."""


@dataclass(frozen=True)
class EngineRow:
    """One engine."""

    name: str
    """As `--engine` and `Reasoner.load(engine=)` take it."""
    options: type[Config]
    """What `--engine-option` and `engine_options` may give, each with its default."""
    open: Callable[[Path | str, Any, bool], Any]
    """(path, options, verify) -> the `Engine`. Of a bundle it is a `ProgramEngine`; `verify` compares every file with
    its SHA-256."""
    state: Callable[[Gpus], EngineState]
    """Whether it can run here, given the GPUs that are here; imports no package."""
    installed: Callable[[], bool] = lambda: True
    """Whether its package is there; imports nothing."""
    checkpoints: bool = False
    """It runs checkpoints, not bundles."""
