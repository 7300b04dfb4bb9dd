"""Sums of what matrices are multiplied with: x times x transposed over the inputs x, of which half is held, because the
other half is its mirror. They can be kept in a file, so that a long reading that was interrupted goes on.

Place in the pipeline: gather.py adds inputs; calibrate.py asks for means of the phases, and keeps the file.

Legend: C columns of a matrix; R inputs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.files import replacing

Phase = Literal["prompt", "latent", "speech"]
PHASES: tuple[Phase, ...] = get_args(Phase)
MOST_INPUTS = 512
"""Inputs that a matrix notes of one reading, evenly spread: patches of a picture are many, and much alike."""
STRIP = 1024
"""Rows of a sum that are added to at once. Of a matrix with more columns, what lies left of their square on the
diagonal is not held: of 8,960 columns 44%."""
_MIXED = "all"


class Symmetric:
    """A symmetric matrix (C, C): strip k holds rows k * STRIP and following, from that column on."""

    def __init__(self, width: int) -> None:
        self.strips = [torch.zeros(min(STRIP, width - start), width - start) for start in range(0, width, STRIP)]

    @staticmethod
    def bytes_of(width: int) -> int:
        """That one of so many columns takes."""
        return sum(4 * min(STRIP, width - start) * (width - start) for start in range(0, width, STRIP))

    def add(self, rows_RC: Tensor, share: float) -> None:
        """`share` times the sum of their products."""
        for strip, start in zip(self.strips, range(0, rows_RC.shape[1], STRIP), strict=True):
            strip.addmm_(rows_RC[:, start : start + STRIP].T, rows_RC[:, start:], alpha=share)

    def add_to(self, whole_CC: np.ndarray, factor: float) -> None:
        """Adds `factor` times this, both halves of it."""
        for strip, start in zip(self.strips, range(0, len(whole_CC), STRIP), strict=True):
            part, end = strip.numpy() * np.float32(factor), start + len(strip)
            whole_CC[start:end, start:] += part
            whole_CC[end:, start:end] += part[:, len(strip) :].T


@dataclass
class Sums:
    """Of one matrix: the sum of x times x transposed (C, C) over its inputs x, by phase; or of all phases together,
    where it is known beforehand how much an input of each counts."""

    width: int
    shares: Mapping[Phase, float] | None = None
    """What one input of a phase counts."""
    total: dict[str, Symmetric] = field(default_factory=dict[str, Symmetric])
    count: dict[Phase, int] = field(default_factory=dict[Phase, int])
    """Inputs that were added."""

    def add(self, phase: Phase, inputs: Tensor) -> None:
        """Inputs (..., C) of one reading."""
        rows = inputs.detach().reshape(-1, self.width)
        rows = rows[:: -(-len(rows) // MOST_INPUTS)].float()
        self.count[phase] = self.count.get(phase, 0) + len(rows)
        share = 1.0 if self.shares is None else self.shares.get(phase, 0.0)
        if share == 0:
            return
        key = phase if self.shares is None else _MIXED
        if key not in self.total:
            self.total[key] = Symmetric(self.width)
        self.total[key].add(rows, share)

    def calibration(self, mix: Mapping[Phase, float]) -> Calibration:
        """Means of the phases, weighed."""
        hessian, weight = np.zeros((self.width, self.width), np.float32), 0.0
        for phase, count in self.count.items():
            if (part := mix.get(phase, 0.0)) > 0 and count:
                weight += part if self.shares is None else self.shares.get(phase, 0.0) * count
                if self.shares is None:
                    self.total[phase].add_to(hessian, part / count)
        if _MIXED in self.total:
            self.total[_MIXED].add_to(hessian, 1.0)
        hessian /= np.float32(max(weight, 1e-30))
        return Calibration(hessian, sum(self.count.values()))


def shares_of(mix: Mapping[Phase, float], counts: Mapping[Phase, int]) -> dict[Phase, float]:
    """What one input of a phase counts, where a phase has so many of them."""
    return {phase: mix.get(phase, 0.0) / counts[phase] for phase in PHASES if counts.get(phase, 0)}


def keep_sums(file: Path, sums: Mapping[str, Sums], done: int) -> None:
    """Writes what `done` readings have given: a line that says what follows, then the strips."""
    told = {role: {"count": one.count, "totals": list(one.total)} for role, one in sums.items()}
    with replacing(file) as place, open(place, "wb") as out:
        out.write(json.dumps({"done": done, "matrices": told}).encode() + b"\n")
        for one in sums.values():
            for total in one.total.values():
                for strip in total.strips:
                    strip.numpy().tofile(out)


def kept_sums(file: Path, sums: Mapping[str, Sums]) -> int:
    """Reads them back into empty ones: how many readings they hold, 0 where there is no file of these matrices."""
    if not file.is_file():
        return 0
    with open(file, "rb") as held:
        told = json.loads(held.readline())
        if told["matrices"].keys() != sums.keys():
            return 0  # more or less memory was given then
        for role, one in told["matrices"].items():
            sums[role].count.update(one["count"])
            for key in one["totals"]:
                total = sums[role].total[key] = Symmetric(sums[role].width)
                for strip in total.strips:
                    strip[:] = torch.from_numpy(np.fromfile(held, np.float32, strip.numel())).reshape(strip.shape)
    return int(told["done"])
