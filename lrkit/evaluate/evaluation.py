"""Accuracy, steps and latency of the three modes on the same samples.

Place in the pipeline: samples (lrkit/data/sources.py) + `Reasoner` -> `Evaluation` -> `lrkit eval`, `lrkit
demo`.

Each mode runs on the weights that were trained for it: a checkpoint declares its chain-of-thought and direct baselines
(`baselines` in reasoner.json). Accuracy is counted in batches. Latency is measured apart, one sample at a time, with
the modes interleaved, so that a change of the machine's speed meets all of them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lrkit.contract.choosing import Choices
from lrkit.contract.generated import MODES, Mode
from lrkit.contract.sample import Sample
from lrkit.contract.scoring import Accuracy, accuracy, compare_paired
from lrkit.evaluate.by_choice import by_choice, choices_of, is_right
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.engines.programs.patience import patience_with
from lrkit.runtime.sdk import Reasoner
from lrkit.summary import summarize

OnProgress = Callable[[Mode, int], None]
"""Called with the mode and the number of samples just answered."""


@dataclass(frozen=True)
class EvalOptions:
    """How to evaluate."""

    modes: tuple[Mode, ...] = MODES
    batch_size: int = 32
    latency_samples: int = 30
    """Samples timed one by one; 0 measures no latency."""
    max_new_tokens: int | None = None
    """None: what a bundle was made for; 256 for a checkpoint."""
    max_latent_steps: int | None = None
    """None: the checkpoint's own limit."""
    max_pixels: int | None = None
    """Larger pictures are shrunk to it; None: the model's own limits."""
    choices: Literal["said", "scored"] = "said"
    """How samples with choices are answered: said, freely, and the choice is found in the words; scored, by the most
    probable choice where the engine tells it, one sample after the other."""


@dataclass
class ModeResult:
    """One mode on all samples."""

    correct: list[bool] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    latencies_sec: list[float] = field(default_factory=list)
    """End to end, preprocessing included, batch 1."""

    def accuracy(self) -> Accuracy:
        return accuracy(self.correct)

    def to_dict(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """For a JSON report. Means are over samples; unknown is null."""
        exact = self.accuracy()
        steps = summarize(answer.ar_steps for answer in self.answers)
        latency = summarize(self.latencies_sec)
        choices = by_choice(samples, self.answers)
        return {
            "accuracy": exact.value,
            "accuracy_low": exact.low,
            "accuracy_high": exact.high,
            "correct": exact.correct,
            "samples": exact.total,
            "ar_steps_mean": steps.mean,
            "ar_steps": steps.to_dict(),
            "latent_steps_mean": summarize(answer.latent_steps for answer in self.answers).mean,
            "latent_steps_histogram": _histogram(answer.latent_steps for answer in self.answers),
            "spoken_tokens_mean": summarize(answer.spoken_tokens for answer in self.answers).mean,
            "replayed_tokens_mean": summarize(answer.replayed_tokens for answer in self.answers).mean,
            "prefilled_tokens_mean": summarize(answer.prefilled_tokens for answer in self.answers).mean,
            "pictures_resized": sum(len(answer.resized) for answer in self.answers),
            "routed_depths_mean": _mean_depths(self.answers),
            "halting": dict(Counter(answer.halting for answer in self.answers)),
            "latency_sec_median": latency.median,
            "latency_sec": latency.to_dict(),
            "accuracy_by_steps": self._by_steps(samples),
            **({} if choices is None else {"choices": choices}),
        }

    def _by_steps(self, samples: Sequence[Sample]) -> dict[str, dict[str, float | int | None]]:
        lengths = sorted({len(sample.steps) for sample in samples})
        pairs = list(zip(samples, self.correct, strict=True))
        return {
            str(length): accuracy([right for sample, right in pairs if len(sample.steps) == length]).to_dict()
            for length in lengths
        }


@dataclass
class Evaluation:
    """All modes on the same samples."""

    samples: Sequence[Sample]
    results: dict[Mode, ModeResult]

    def ratio(self, key: str, over: Mode, under: Mode) -> float | None:
        """`over` / `under` of a figure of `to_dict`, None where one is unknown or zero."""
        top, bottom = (self.results[m].to_dict(self.samples)[key] if m in self.results else None for m in (over, under))
        return top / bottom if top is not None and bottom else None

    def to_dict(self) -> dict[str, Any]:
        """For a JSON report: figures per mode, the CoT / latent ratios, and the paired comparison with latent."""
        paired = {
            mode: compare_paired(self.results["latent"].correct, result.correct).to_dict()
            for mode, result in self.results.items()
            if mode != "latent" and "latent" in self.results
        }
        return {
            "modes": {mode: result.to_dict(self.samples) for mode, result in self.results.items()},
            "latent_minus": paired,
            "cot_over_latent": {
                "ar_steps": self.ratio("ar_steps_mean", "cot", "latent"),
                "latency": self.ratio("latency_sec_median", "cot", "latent"),
            },
        }


def evaluate(
    reasoner: Reasoner, samples: Sequence[Sample], options: EvalOptions, on_progress: OnProgress | None = None
) -> Evaluation:
    """Asks every sample in every mode; see the module's docstring.

    Raises:
        DataError: a sample cannot be encoded, or its answer is none of its choices.
        TimeoutExceeded: a bundle's program seems to have no end.
    """
    reasoners: dict[Mode, Reasoner] = {mode: reasoner.baseline(mode) for mode in options.modes}
    results: dict[Mode, ModeResult] = {mode: ModeResult() for mode in options.modes}
    for mode, asked in reasoners.items():
        for start in range(0, len(samples), options.batch_size):
            part = samples[start : start + options.batch_size]
            answers = asked.ask_batch(
                [(sample.images, sample.question) for sample in part],
                mode,
                max_new_tokens=options.max_new_tokens,
                max_latent_steps=options.max_latent_steps,
                max_pixels=options.max_pixels,
                timeout=patience_with(asked.engine, options.max_new_tokens, len(part)),
                choices=_choices(part, options),
            )
            results[mode].answers += answers
            results[mode].correct += [is_right(answer, sample) for answer, sample in zip(answers, part, strict=True)]
            if on_progress is not None:
                on_progress(mode, len(part))
    _time_one_by_one(reasoners, samples, options, results)
    return Evaluation(samples, results)


def _time_one_by_one(
    reasoners: Mapping[Mode, Reasoner],
    samples: Sequence[Sample],
    options: EvalOptions,
    results: dict[Mode, ModeResult],
) -> None:
    """Fills `latencies_sec`, the modes taking turns on each sample; one unmeasured round warms up."""
    timed = samples[: options.latency_samples]
    for turn, sample in enumerate([*timed[:1], *timed]):
        for mode, asked in reasoners.items():
            answer = asked.ask(
                sample.images,
                sample.question,
                mode,
                max_new_tokens=options.max_new_tokens,
                max_latent_steps=options.max_latent_steps,
                max_pixels=options.max_pixels,
                timeout=patience_with(asked.engine, options.max_new_tokens),
                choices=choices_of(sample) if options.choices == "scored" else None,
            )
            if turn > 0:
                results[mode].latencies_sec.append(answer.timings["total"])


def _choices(samples: Sequence[Sample], options: EvalOptions) -> list[Choices | None] | None:
    found = [choices_of(sample) for sample in samples] if options.choices == "scored" else []
    return found if any(found) else None


def _histogram(values: Any) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(values).items())}


def _mean_depths(answers: Sequence[Answer]) -> list[float]:
    """Per layer, extra passes per answer; empty without answers."""
    if not answers:
        return []
    return [sum(layer) / len(answers) for layer in zip(*(answer.depths for answer in answers), strict=True)]
