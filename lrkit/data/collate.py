"""Samples to padded batches of tensors, and which explicit steps the latent steps stand for (method section 6).

Place in the pipeline: `Sample` + `Processor` -> `TrainBatch` -> `LatentReasoner.forward`.

Shapes: B samples, S spoken tokens; those of prompts are in prompt_batch.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch

from lrkit.contract.prompt import PromptFormat, Turn
from lrkit.contract.sample import Sample, Spoken, naming
from lrkit.data.looks import LABEL, Look, label_shares, overlaps
from lrkit.data.step_split import merge_steps
from lrkit.errors import ConfigError, DataError
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.torch.prompt_batch import PromptBatch, Side, collate_prompts, pad_rows


@dataclass
class TrainBatch(PromptBatch):
    """Prompts with what is to be thought and said after them."""

    num_latents: torch.Tensor
    """(B,) int64: latent steps before speech."""
    may_think: torch.Tensor
    """(B,) bool: whether the model chose where speech begins, so that the choice is supervised. False where it was
    asked to speak at once (explicit steps, a bare answer): there the latent token is masked, in training as in use."""
    speech_ids: torch.Tensor
    """(B, S) int64, padded on the right; each row ends with the end token."""
    speech_mask: torch.Tensor
    """(B, S) bool; False is padding."""
    speech_weights: torch.Tensor
    """(B, S) float32: weight of each token in the loss; 0 on padding."""
    looks: torch.Tensor | None = field(default=None, kw_only=True)
    """(B, T, V) float32: where each latent step should look, as shares of the visual tokens; 0 throughout where nothing
    says it. None where nothing is taught about it, or until the teacher has spoken."""
    taught: PromptBatch | None = field(default=None, kw_only=True)
    """The same prompts as the teacher reads them."""
    overlap: torch.Tensor | None = field(default=None, kw_only=True)
    """(B, U, V) float32: share of each of the teacher's visual tokens that lies over each of the model's."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`."""
        moved = super().to(device)
        return moved if moved.taught is None else replace(moved, taught=moved.taught.to(device))


@dataclass(frozen=True)
class Pointing:
    """Who says where latent steps should look."""

    teacher: Processor | None = None
    """What the teacher reads; None: the samples' own labels."""


def num_replaced(num_steps: int, num_latents: int, max_latent_steps: int | None = None) -> int:
    """Explicit steps that the first `num_latents` latent steps stand for; with all latents, all steps.

    `max_latent_steps` None means that no steps are merged: one latent per step.

    Raises:
        DataError: more latents than the sample has groups of steps; a sample of n steps never gets more than n latents.
    """
    groups = merge_steps(range(num_steps), num_steps if max_latent_steps is None else max_latent_steps)
    if num_latents > len(groups):
        raise DataError(
            f"{num_latents} latent steps were asked for a sample with {num_steps} reasoning steps; "
            f"it can have at most {len(groups)}, so lower the number"
        )
    return sum(len(group) for group in groups[:num_latents])


def collate_training(
    processor: Processor,
    samples: Sequence[Sample],
    num_latents: Sequence[int],
    spoken: Spoken = "rest",
    token_weights: Mapping[str, float] | None = None,
    side: Side = "right",
    max_latent_steps: int | None = None,
    pointing: Pointing | None = None,
) -> TrainBatch:
    """A training batch: sample i thinks `num_latents[i]` latent steps, then speaks.

    Args:
        spoken: "rest" speaks the steps that no latent stands for, then the answer; "none" the answer alone, whose
            marker then ends the prompt as it does in the mode `direct`; "bare" the answer alone, without marker.
        token_weights: regular expression searched in a token's text -> its weight in the loss; the first match in
            order decides, 1 without one. A sample's `info["weight_pattern"]`, repeated over all its spoken tokens,
            multiplies them: words that cannot be known (a random order) are kept out of the loss so.
        side: where prompts are padded; speech is always padded on the right.
        max_latent_steps: with more steps than this, steps are merged into so many (`merge_steps`); None never merges.
        pointing: None where nothing is taught about where to look.

    Raises:
        DataError: a sample cannot be encoded, or was given more latents than it has steps.
        ConfigError: a key of `token_weights` is no regular expression.
    """
    weigh = _token_weigher(processor, tuple((token_weights or {}).items()))
    spoken_samples = [
        _speak(processor, weigh, sample, latents, spoken, max_latent_steps)
        for sample, latents in zip(samples, num_latents, strict=True)
    ]
    speech_ids, speech_mask = pad_rows([one.ids for one in spoken_samples], processor.pad_id, "right")
    weights = torch.zeros(speech_ids.shape, dtype=torch.float32)
    weights[speech_mask] = torch.tensor([w for one in spoken_samples for w in one.weights], dtype=torch.float32)
    batch = collate_prompts([one.prompt for one in spoken_samples], processor.pad_id, side)
    return TrainBatch(
        input_ids=batch.input_ids,
        prompt_mask=batch.prompt_mask,
        pixel_values=batch.pixel_values,
        grids=batch.grids,
        images_per_sample=batch.images_per_sample,
        num_latents=torch.tensor(list(num_latents), dtype=torch.int64),
        may_think=torch.tensor([one.may_think for one in spoken_samples], dtype=torch.bool),
        speech_ids=speech_ids,
        speech_mask=speech_mask,
        speech_weights=weights,
        windows=batch.windows,
        window_grid=batch.window_grid,
        **_pointed(pointing, samples, [one.prompt for one in spoken_samples], num_latents, max_latent_steps),
    )


def _pointed(
    pointing: Pointing | None,
    samples: Sequence[Sample],
    prompts: Sequence[EncodedPrompt],
    num_latents: Sequence[int],
    max_latent_steps: int | None,
) -> dict[str, Any]:
    """The fields of a batch that say where to look."""
    if pointing is None or not any(prompt.grids for prompt in prompts):
        return {}
    if pointing.teacher is None:
        shares = [
            label_shares(_looks(sample, latents, max_latent_steps), prompt)
            for sample, prompt, latents in zip(samples, prompts, num_latents, strict=True)
        ]
        return {"looks": _padded(shares)}
    taught: list[EncodedPrompt] = []
    for sample in samples:
        with naming(sample):
            taught.append(pointing.teacher.encode_prompt(sample.images, sample.question))
    own = [overlaps(theirs, prompt) for theirs, prompt in zip(taught, prompts, strict=True)]
    return {"taught": collate_prompts(taught, pointing.teacher.pad_id), "overlap": _padded(own)}


def _looks(sample: Sample, num_latents: int, max_latent_steps: int | None) -> list[list[Look]]:
    """What each latent step should see: all that the steps look at which it stands for."""
    steps = sample.info.get(LABEL, ())
    most = len(sample.steps) if max_latent_steps is None else max_latent_steps
    groups = merge_steps(range(len(sample.steps)), most)[:num_latents]
    return [[look for step in group if step < len(steps) for look in steps[step]] for group in groups]


def _padded(matrices: Sequence[np.ndarray]) -> torch.Tensor:
    """Matrices of several sizes as one batch, zeros behind."""
    rows, columns = (max(matrix.shape[axis] for matrix in matrices) for axis in (0, 1))
    joined = np.zeros((len(matrices), rows, columns), np.float32)
    for place, matrix in zip(joined, matrices, strict=True):
        place[: matrix.shape[0], : matrix.shape[1]] = matrix
    return torch.from_numpy(joined)


@dataclass(frozen=True)
class _Spoken:
    """One sample of a training batch, encoded."""

    prompt: EncodedPrompt
    ids: list[int]
    weights: list[float]
    may_think: bool


def _speak(
    processor: Processor,
    weigh: "_TokenWeigher",
    sample: Sample,
    num_latents: int,
    spoken: Spoken,
    max_latent_steps: int | None,
) -> _Spoken:
    """What a sample asks and says once `num_latents` latents stand for its first steps."""
    replaced = num_replaced(len(sample.steps), num_latents, max_latent_steps)
    with naming(sample):
        earlier = earlier_turns(processor.format, sample, spoken, explicit=max_latent_steps is None)
        prompt = processor.encode_prompt(sample.images, sample.question, earlier=earlier)
        ids = processor.encode_speech(sample.steps[replaced:] if spoken == "rest" else (), sample.answer)
    marker = 0 if spoken == "rest" else len(processor.answer_prefix_ids)
    asked = processor.asked_in(prompt, "direct") if spoken == "none" else prompt
    pattern = sample.info.get("weight_pattern", (1.0,))
    weights = [weigh(token) * pattern[i % len(pattern)] for i, token in enumerate(ids)]
    # Explicit steps left to speak are steps that were asked for: the model did not choose to stop thinking there.
    may_think = spoken != "none" and replaced == len(sample.steps)
    return _Spoken(asked, ids[marker:], weights[marker:], may_think)


def earlier_turns(format: PromptFormat, sample: Sample, spoken: Spoken, explicit: bool) -> list[Turn]:
    """The turns before a sample as a model speaks them that is trained so; `explicit` speaks steps too."""
    turns: list[Turn] = []
    for told in sample.earlier:
        steps = told.steps if explicit and spoken == "rest" else ()
        answer = told.answer if spoken == "bare" else format.answer.replace("{answer}", told.answer)
        turns.append(Turn(told.question, format.step_separator.join([*steps, answer])))
    return turns


class _TokenWeigher:
    """Weight of a token id, looked up by its text once."""

    def __init__(self, processor: Processor, rules: tuple[tuple[str, float], ...]):
        self._processor = processor
        self._rules: list[tuple[re.Pattern[str], float]] = []
        self._known: dict[int, float] = {}
        for pattern, weight in rules:
            try:
                self._rules.append((re.compile(pattern), weight))
            except re.error as error:
                raise ConfigError(
                    f"token_weights: {pattern!r} is no regular expression ({error}); correct it"
                ) from error

    def __call__(self, token: int) -> float:
        if (weight := self._known.get(token)) is None:
            text = self._processor.token_text(token)
            weight = next((weight for rule, weight in self._rules if rule.search(text)), 1.0)
            self._known[token] = weight
        return weight


@lru_cache(maxsize=8)
def _token_weigher(processor: Processor, rules: tuple[tuple[str, float], ...]) -> _TokenWeigher:
    return _TokenWeigher(processor, rules)
