"""Phases of programs that report one number: each is the difference of two runs, of which one stops earlier.

    text    up to the first token, no latents, a prompt of equal length without a picture
    bare    up to the first token, no latents           bare - text: the vision tower; text: the prefill
    T       up to the first token, T latents fixed      T - (T - 1): the T-th latent step
    full    the answer                                  full - last of the above: speech

A question asked of a scene has no vision phase, and its prefill reads the question alone.

A program's tower runs in a prompt without a picture too, on the smallest one that the family knows. Where that is no
small part of the picture, as where every view has one size, the tower is not told from the prefill.

Place in the pipeline: rounds.py -> `difference_runs` -> statistics.py. Runs of different cases are
interleaved, so that each finds the caches as an answer of the measuring loop does. The fastest of several runs of a
variant counts, because a disturbance only adds time, and a difference would carry it twice. Differences can still come
out below zero, and are kept as they are.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lrkit.contract.sample import Sample
from lrkit.errors import LrkitError
from lrkit.profile.measure.asked_prompt import PromptMaker
from lrkit.profile.measure.cases import Case, patient
from lrkit.runtime.encode.processor import EncodedPrompt
from lrkit.runtime.engines.common.protocol import AskOptions

_LEAST = 8
"""Times that a picture is larger than the smallest, for the tower to be told from the prefill."""

Difference = dict[str, Any]
"""Seconds of vision, prefill, think, speak, first_token; lists latent_step_sec; token_sec; None where there is none."""


@dataclass
class _Variant:
    """One way to stop early, and how long it took."""

    prompt: EncodedPrompt
    options: AskOptions
    seconds: list[float] = field(default_factory=list[float])

    @property
    def fastest(self) -> float:
        return min(self.seconds)


@dataclass
class _Job:
    """One case on one prompt."""

    case: Case
    variants: dict[str, _Variant]
    latent_steps: int
    spoken_steps: int
    """Tokens fed back."""

    def run(self, number: int) -> None:
        variants = list(self.variants.values())
        if number < len(variants):
            variant = variants[number]
            started = time.perf_counter()
            self.case.engine.generate([variant.prompt], patient(self.case.engine, variant.options))
            variant.seconds.append(time.perf_counter() - started)

    def result(self) -> Difference:
        """Seconds by phase."""
        found = {name: variant.fastest for name, variant in self.variants.items()}
        bare = found["bare"]
        vision = bare - found["text"] if "text" in found else None
        result: Difference = {"vision": vision, "prefill": bare if vision is None else found["text"]}
        if "full" not in found:
            return result
        thought = [bare, *(found[f"latent {step}"] for step in range(1, self.latent_steps + 1))]
        speak = found["full"] - thought[-1]
        return result | {
            "think": thought[-1] - bare if self.latent_steps else None,
            "speak": speak,
            "first_token": thought[-1],
            "latent_steps": self.latent_steps,
            "latent_step_sec": [after - before for before, after in itertools.pairwise(thought)],
            "token_sec": speak / self.spoken_steps if self.spoken_steps else None,
        }


def difference_runs(
    cases: Sequence[Case], samples: Sequence[Sample], rounds: int, found: dict[str, list[Difference]]
) -> None:
    """Adds to `found` (case id -> entries) an entry per sample, for the cases whose phases need it. Each variant is run
    `rounds` times, and its fastest counts. Samples that a case cannot answer are left out; the measuring loop has
    reported them."""
    wanted = [case for case in cases if case.engine.phases != "inside"]
    for sample in samples:
        jobs = [job for case in wanted if (job := _job(case, sample)) is not None]
        most = max((len(job.variants) for job in jobs), default=0)
        for _ in range(rounds):
            for number in range(most):
                for job in jobs:
                    job.run(number)
        for job in jobs:
            found.setdefault(job.case.id, []).append(job.result())


def _job(case: Case, sample: Sample) -> _Job | None:
    try:
        maker = PromptMaker(case, sample)
        maker.look()
        prompt = maker.encode()
        answer = case.engine.generate([prompt], patient(case.engine, case.options))[0]
    except LrkitError:
        return None
    bare = replace(case.options, max_new_tokens=1, max_latent_steps=0, halting="fixed")
    variants = {"bare": _Variant(prompt, bare)}
    if prompt.looked is None and prompt.patches is not None and _LEAST * _fewest(case) <= len(prompt.patches):
        variants["text"] = _Variant(_without_picture(prompt, case.reasoner.processor.image_id), bare)
    if case.engine.phases == "differences":
        for step in range(1, answer.latent_steps + 1):
            variants[f"latent {step}"] = _Variant(prompt, replace(bare, max_latent_steps=step))
        variants["full"] = _Variant(prompt, case.options)
    return _Job(case, variants, answer.latent_steps, answer.ar_steps - answer.latent_steps)


def _fewest(case: Case) -> int:
    """Patches of the smallest picture."""
    geometry = case.reasoner.processor.geometry
    return geometry.num_patches(geometry.smallest_grid)


def _without_picture(prompt: EncodedPrompt, image_id: int) -> EncodedPrompt:
    """As many tokens, all of them words: what the prefill costs without the vision tower."""
    word = prompt.ids[-1]
    return EncodedPrompt([word if token == image_id else token for token in prompt.ids], None, [])
