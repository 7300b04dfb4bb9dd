"""Questions asked with the latents as they are, or as an intervention makes them; what each step started from is kept.

Place in the pipeline: samples + `Reasoner` -> `Questions.ask` -> `Told` per question -> effects.py. Torch-free.

Legend: D width, V visual tokens of a prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lrkit.contract.carried import Carried
from lrkit.contract.extract import says_right
from lrkit.contract.generated import Mode
from lrkit.contract.sample import Sample, naming
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.common.protocol import AskOptions, Engine


@dataclass(frozen=True)
class State:
    """What one latent step of one question starts from."""

    hidden: np.ndarray
    """(D,) float32."""
    saliency: np.ndarray | None
    """(V,) float32; None without pictures or replay."""


@dataclass
class Told:
    """One answer."""

    answer: str | None
    """The bare answer; None where the text names none."""
    right: bool
    steps: int
    """Latent steps taken."""
    states: list[State] = field(default_factory=list[State])
    """What each latent step started from, before any intervention."""


Change = Callable[[int, int, State], State]
"""(question, latent step from 1, what it starts from) -> what it is to start from."""
OnAnswers = Callable[[str, int], None]
"""Gets what was asked for, and how many answers came."""


@dataclass(frozen=True)
class Asking:
    """How all questions are asked."""

    batch_size: int
    max_new_tokens: int | None
    max_pixels: int | None
    on_answers: OnAnswers


class Questions:
    """Samples, encoded once for an engine."""

    def __init__(self, engine: Engine, samples: Sequence[Sample], how: Asking) -> None:
        """Raises: DataError: a sample cannot be encoded; it names its place."""
        self.engine, self.samples, self._how = engine, samples, how
        self.prompts = [self._encoded(sample) for sample in samples]
        image_id = engine.processor.image_id
        self.num_visual = [prompt.ids.count(image_id) for prompt in self.prompts]

    def of(self, samples: Sequence[Sample]) -> "Questions":
        """Other samples, asked in the same way."""
        return Questions(self.engine, samples, self._how)

    def ask(
        self,
        what: str,
        change: Change | None = None,
        steps: Mapping[int, int] | None = None,
        mode: Mode = "latent",
        engine: Engine | None = None,
    ) -> dict[int, Told]:
        """Number of a question -> its answer. `steps` names the questions to ask and how many latent steps each takes;
        None asks all, and the model decides. `engine` asks instead of the usual one.

        Raises as `Engine.generate`.
        """
        found: dict[int, Told] = {}
        for fixed, numbers in self._batches(steps):
            found |= self._batch(numbers, fixed, change, mode, engine or self.engine)
            self._how.on_answers(what, len(numbers))
        return dict(sorted(found.items()))

    def _batches(self, steps: Mapping[int, int] | None) -> list[tuple[int | None, list[int]]]:
        """Questions of one batch take equally many steps, because a call fixes one number for all."""
        groups: dict[int | None, list[int]] = {}
        if steps is None:
            groups[None] = list(range(len(self.samples)))
        else:
            for number, count in steps.items():
                groups.setdefault(count, []).append(number)
        size = self._how.batch_size
        return [(fixed, all_[at : at + size]) for fixed, all_ in groups.items() for at in range(0, len(all_), size)]

    def _batch(
        self, numbers: list[int], fixed: int | None, change: Change | None, mode: Mode, engine: Engine
    ) -> dict[int, Told]:
        seen: dict[int, list[State]] = {number: [] for number in numbers}

        def before_step(given: Carried) -> Carried:
            rows = [self._row(given, row, numbers[sample]) for row, sample in enumerate(given.samples)]
            for sample, state in zip(given.samples, rows, strict=True):
                seen[numbers[sample]].append(state)
            if change is None:
                return given
            made = [
                change(numbers[sample], given.step, state) for sample, state in zip(given.samples, rows, strict=True)
            ]
            return _put(given, made)

        options = AskOptions(
            mode,
            self._how.max_new_tokens,
            fixed,
            None if fixed is None else "fixed",
            before_step=before_step if mode == "latent" else None,
        )
        results = engine.generate([self.prompts[number] for number in numbers], options)
        told: dict[int, Told] = {}
        for number, result in zip(numbers, results, strict=True):
            said = engine.processor.decode(result.token_ids)
            answer = engine.processor.format.find_answer(said, mode)
            right = says_right(answer, said, self.samples[number])
            told[number] = Told(answer, right, result.latent_steps, seen[number])
        return told

    def _row(self, given: Carried, row: int, number: int) -> State:
        saliency = None if given.saliency is None else given.saliency[row, : self.num_visual[number]].copy()
        return State(given.hidden[row].copy(), saliency)

    def _encoded(self, sample: Sample) -> EncodedPrompt:
        with naming(sample):
            return self.engine.processor.encode_prompt(sample.images, sample.question, self._how.max_pixels)


def _put(given: Carried, rows: Sequence[State]) -> Carried:
    """The rows back into arrays as wide as those given; what stands behind a row's visual tokens stays."""
    saliency = given.saliency
    if saliency is not None:
        saliency = saliency.copy()
        for row, state in enumerate(rows):
            if state.saliency is not None:
                saliency[row, : len(state.saliency)] = state.saliency
    return replace(given, hidden=np.stack([state.hidden for state in rows]), saliency=saliency)
