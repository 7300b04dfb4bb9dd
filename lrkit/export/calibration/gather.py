"""Sums up what matrices are multiplied with, phase by phase, while a reasoner answers as it will: prompt, latent steps
with all they replay and route, speech.

Place in the pipeline: calibrate.py calls `gather` for some layers at a time.

Legend: C columns of a matrix; B batch.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.contract.generated import GenerationLimits, Mode
from lrkit.contract.sample import Sample
from lrkit.export.calibration.matrices import Matrix
from lrkit.export.weights.quantizers.quantizer import Calibration
from lrkit.model.generate import generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts

Phase = Literal["prompt", "latent", "speech"]
PHASES: tuple[Phase, ...] = get_args(Phase)
WINDOW = 512
"""Tokens of a text that are read at once."""
MOST_INPUTS = 512
"""Inputs that a matrix notes of one reading, evenly spread: patches of a picture are many, and much alike."""
_MIXED = "all"


@dataclass(frozen=True)
class CalibrationSet:
    """What a model is calibrated on. None of it may be what it is measured on later."""

    name: str
    """For bundle.json."""
    samples: Sequence[Sample] = ()
    """Questions, which are answered."""
    texts: Sequence[str] = ()
    """Plain texts, which are read as prompts."""
    mix: Mapping[Phase, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 1.0))
    """How much each phase counts, whatever its number of tokens."""


@dataclass
class Sums:
    """Of one matrix: the sum of x times x transposed (C, C) over its inputs x, by phase; or of all phases together,
    where it is known beforehand how much an input of each counts."""

    width: int
    shares: Mapping[Phase, float] | None = None
    """What one input of a phase counts."""
    total: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
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
            self.total[key] = torch.zeros(self.width, self.width)
        self.total[key].addmm_(rows.T, rows, alpha=share)

    def calibration(self, mix: Mapping[Phase, float]) -> Calibration:
        """Means of the phases, weighed."""
        hessian, weight = np.zeros((self.width, self.width), np.float32), 0.0
        for phase, count in self.count.items():
            if (part := mix.get(phase, 0.0)) > 0 and count:
                weight += part
                if self.shares is None:
                    hessian += self.total[phase].numpy() * (part / count)
        if _MIXED in self.total:
            hessian += self.total[_MIXED].numpy()
        return Calibration(hessian / max(weight, 1e-30), sum(self.count.values()))


def shares_of(mix: Mapping[Phase, float], counts: Mapping[Phase, int]) -> dict[Phase, float]:
    """What one input of a phase counts, where a phase has so many of them."""
    return {phase: mix.get(phase, 0.0) / counts[phase] for phase in PHASES if counts.get(phase, 0)}


class _Enough(Exception):
    """The last layer that is watched has read its input."""


class Watched:
    """A reasoner whose matrices are watched."""

    def __init__(
        self, reasoner: LatentReasoner, matrices: Sequence[Matrix], shares: Mapping[Phase, float] | None
    ) -> None:
        self._reasoner = reasoner
        self._matrices = matrices
        self.sums = {matrix.role: Sums(matrix.width, shares) for matrix in matrices}
        self.phase: Phase = "prompt"
        self.ends_early = False
        """Whether nothing of interest follows the last matrix that is watched."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reasoner, name)

    def read(self, *args: Any) -> Any:
        self.phase = "prompt"
        return self._reasoner.read(*args)

    def think(self, *args: Any) -> Any:
        self.phase = "latent"
        return self._reasoner.think(*args)

    def think_at_once(self, *args: Any) -> Any:
        self.phase = "latent"
        return self._reasoner.think_at_once(*args)

    def speak(self, *args: Any) -> Any:
        self.phase = "speech"
        return self._reasoner.speak(*args)

    @contextmanager
    def watching(self) -> Generator[None]:
        """While this is open."""
        hooks = [one.module.register_forward_pre_hook(self._hook(one)) for one in self._matrices]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, matrix: Matrix) -> Callable[[Any, tuple[Any, ...]], None]:
        sums, last = self.sums[matrix.role], matrix is self._matrices[-1]

        def note(module: Any, given: tuple[Any, ...]) -> None:
            sums.add(self.phase, given[0])
            if last and self.ends_early:
                raise _Enough

        return note


def gather(
    reasoner: LatentReasoner, processor: Processor, role: Role, limits: Limits, given: CalibrationSet,
    matrices: Sequence[Matrix], progress: Callable[[int, int], None] = lambda done, total: None,
    shares: Mapping[Phase, float] | None = None,
) -> dict[str, Sums]:  # fmt: skip
    """Role of a matrix -> what it read while the reasoner answered all samples and read all texts; `shares` as in
    `Sums`, which then hold one matrix in place of one for each phase.

    Raises:
        DataError, CapacityError: a sample cannot be read.
    """
    watched = Watched(reasoner, matrices, shares)
    windows = [ids for text in given.texts for ids in _windows(processor, text)]
    total = len(given.samples) + len(windows)
    with watched.watching(), torch.inference_mode():
        for done, sample in enumerate(given.samples):
            _answer(watched, processor, sample, role, limits)
            progress(done + 1, total)
        watched.phase, watched.ends_early = "prompt", True
        for done, ids in enumerate(windows, start=len(given.samples)):
            with suppress(_Enough):
                reasoner.backbone.model(input_ids=torch.tensor([ids]))
            progress(done + 1, total)
    return watched.sums


def _answer(watched: Watched, processor: Processor, sample: Sample, role: Role, limits: Limits) -> None:
    """One sample alone, so that nothing is padding."""
    prompt = processor.asked_in(processor.encode_prompt(sample.images, sample.question), role)
    most = min(watched.settings.think.max_latent_steps, limits.max_latent_steps)
    bounds = GenerationLimits(processor.eos_id, limits.max_new_tokens, most, more_ends=processor.end_ids[1:])
    mode: Mode = role
    generate(watched, collate_prompts([prompt], processor.pad_id), mode, bounds)  # pyright: ignore[reportArgumentType]


def _windows(processor: Processor, text: str) -> Iterator[list[int]]:
    ids = list(processor.tokenizer.encode(text).ids)
    return (ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW))
