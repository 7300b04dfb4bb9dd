"""Sums up what matrices are multiplied with, phase by phase, while a reasoner answers as it will: prompt, latent steps
with all they replay and route, speech.

Place in the pipeline: calibrate.py calls `gather` for some layers at a time.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from lrkit.contract.bundle.manifest import Limits, Role
from lrkit.contract.generated import GenerationLimits, Mode
from lrkit.contract.sample import Sample
from lrkit.export.calibration.matrices import Matrix
from lrkit.export.calibration.sums import PHASES, Phase, Sums, keep_sums, kept_sums
from lrkit.model.generate import generate
from lrkit.model.reasoner import LatentReasoner
from lrkit.runtime.encode.processor import Processor
from lrkit.runtime.engines.torch.prompt_batch import collate_prompts

WINDOW = 512
"""Tokens of a text that are read at once."""
KEEP_SECONDS = 600.0
"""After so long a reading its sums are written, where a file for them is given."""
PILOT = 4
"""Readings, evenly spread, by which it is guessed how many inputs a phase will have."""


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
    shares: Mapping[Phase, float] | None = None, file: Path | None = None,
) -> dict[str, Sums]:  # fmt: skip
    """Role of a matrix -> what it read while the reasoner answered all samples and read all texts; `shares` as in
    `Sums`, which then hold one matrix in place of one for each phase. Goes on from the sums in `file`, where there are
    some, and keeps those of a long reading there.

    Raises:
        DataError, CapacityError: a sample cannot be read.
    """
    watched = Watched(reasoner, matrices, shares)
    windows = [ids for text in given.texts for ids in _windows(processor, text)]
    total = len(given.samples) + len(windows)
    begin = 0 if file is None else kept_sums(file, watched.sums)
    written = monotonic()
    with watched.watching(), torch.inference_mode():
        for number in range(begin, total):
            if number < len(given.samples):
                _answer(watched, processor, given.samples[number], role, limits)
            else:
                _read_window(watched, windows[number - len(given.samples)])
            progress(number + 1, total)
            if file is not None and monotonic() - written > KEEP_SECONDS:
                keep_sums(file, watched.sums, number + 1)
                written = monotonic()
    if file is not None and file.is_file():
        keep_sums(file, watched.sums, total)
    return watched.sums


def guess_counts(
    reasoner: LatentReasoner, processor: Processor, role: Role, limits: Limits, given: CalibrationSet, matrix: Matrix
) -> dict[Phase, int]:
    """How many inputs of each phase a matrix will have, from the first of some readings."""
    count = len(given.samples)
    some = [given.samples[i * count // PILOT] for i in range(PILOT)] if count > PILOT else given.samples
    none = dict.fromkeys(PHASES, 0.0)  # nothing is summed up
    pilot = CalibrationSet(given.name, some)
    found = gather(reasoner, processor, role, limits, pilot, [matrix], shares=none)[matrix.role].count
    return {phase: round(found.get(phase, 1) * count / len(some)) for phase in PHASES}


def _read_window(watched: Watched, ids: list[int]) -> None:
    watched.phase, watched.ends_early = "prompt", True
    with suppress(_Enough):
        watched.backbone.model(input_ids=torch.tensor([ids]))


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
