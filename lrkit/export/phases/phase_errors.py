"""Errors by phase: the norm that all of them are in, and what is kept of many.

The error of a vector is relative, in the Euclidean norm: ||seen - expected|| / ||expected||. Of several tokens it is
the mean over the tokens.

Place in the pipeline: check.py compares a program with torch, comparing.py rounded weights on torch with floats; both
keep `Errors`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

NORM = "||seen - expected|| / ||expected||, Euclidean; of several tokens their mean"
"""For a record."""
_TINY = 1e-12


def off(seen: np.ndarray, expected: np.ndarray) -> float:
    """The error of vectors (..., D): the mean over all of them. Infinite where a number is none."""
    wide, other = seen.astype(np.float64), expected.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(other, axis=-1), _TINY)
    found = float(np.mean(np.linalg.norm(wide - other, axis=-1) / lengths))
    return found if np.isfinite(found) else float("inf")


@dataclass
class Errors:
    """Those of each phase, a number a sample."""

    by_phase: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Phase -> errors of the samples that have it: prompt.last, prompt.tokens, latent.1 ..., latent.last (of each
    sample's own last step), speech; of a program logits for prompt.last."""

    def add(self, phase: str, seen: np.ndarray, expected: np.ndarray) -> None:
        """One sample's vectors (..., D) of a phase; nothing where it has none, or more of them than the other."""
        if seen.shape == expected.shape and seen.size:
            self.by_phase.setdefault(phase, []).append(off(seen, expected))

    def summary(self) -> dict[str, Any]:
        """Phase -> mean, largest, samples; in the order of an answer. An infinite error is null."""
        return {phase: _summary(self.by_phase[phase]) for phase in sorted(self.by_phase, key=_place)}


def _summary(errors: list[float]) -> dict[str, Any]:
    mean, largest = float(np.mean(errors)), float(np.max(errors))
    return {
        "mean": mean if np.isfinite(mean) else None, "largest": largest if np.isfinite(largest) else None,
        "samples": len(errors),
    }  # fmt: skip


def _place(phase: str) -> tuple[int, str, int]:
    """Where a phase stands in an answer: prompt, latent steps by number, speech."""
    name, _, step = phase.partition(".")
    order = ("prompt", "latent", "speech")
    number = int(step) if step.isdigit() else 0 if name == "prompt" else 1 << 20
    return (order.index(name) if name in order else len(order), step if name == "prompt" else "", number)
