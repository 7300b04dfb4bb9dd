"""What is fuzzed: for each kind of input how a case is drawn and what is done with it."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import targets_cards, targets_files, targets_lines, targets_models, targets_values

Prepare = Callable[[Path, Path], None]
"""Gets a folder of its own and a real bundle, once."""


@dataclass(frozen=True)
class Target:
    """One kind of input."""

    weight: float
    """Its share of the cases."""
    case: Callable[[Random], Any]
    run: Callable[[Any], object]
    prepare: Prepare


def _table(module: Any) -> dict[str, Target]:
    rows: dict[str, tuple[float, Any, Any]] = module.TARGETS
    return {name: Target(weight, case, run, module.prepare) for name, (weight, case, run) in rows.items()}


TARGETS: dict[str, Target] = {
    name: target
    for module in (targets_values, targets_files, targets_lines, targets_cards, targets_models)
    for name, target in _table(module).items()
}
"""By name."""


def find(name: str) -> Target:
    """The target of that name."""
    return SELF_TEST if name == "self-test" else TARGETS[name]


def _misbehave(index: int) -> None:
    """What the runner must survive: a crash, a hang, an error, a flood of memory; all else is well."""
    if index == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif index == 1:
        signal.pause()
    elif index == 2:
        _ = 1 / 0
    elif index == 3:
        bytearray(8 << 30)


SELF_TEST = Target(0, lambda rng: rng.index, _misbehave, lambda work, bundle: None)  # pyright: ignore
"""Run when it is named, as `self-test`."""
