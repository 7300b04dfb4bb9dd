"""How large the batches of a stage are: drawn from the data as training draws them, or worked out from what is assumed
where data or tokenizer are not at hand.

Place in the pipeline: recipe, processor, data -> `BatchSizes` -> memory.py and work.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lrkit.contract.settings import ReasonerSettings
from lrkit.data.collate import TrainBatch, num_replaced
from lrkit.data.expected import Expected
from lrkit.data.sources import Source
from lrkit.families.protocols import Geometry
from lrkit.runtime.encode.processor import Processor
from lrkit.train.curriculum import Curriculum, num_latents
from lrkit.train.recipe import Recipe
from lrkit.train.stage import Stage
from lrkit.train.vision import VisionBatch

DRAWN = 4
"""Batches drawn of a stage."""
_MOST_PICTURES = 64
"""Samples of one drawn batch: a larger one is a multiple of it."""


@dataclass(frozen=True)
class BatchSizes:
    """One batch as the model gets it, padded to its longest sample."""

    samples: int
    prompt: int
    """Tokens of the longest prompt, pictures and all."""
    visual: float
    """Visual tokens of a sample, on average."""
    pictures: float
    """Pictures of the whole batch."""
    patches: float
    """Patches of the whole batch."""
    latents: int
    """Most latent steps of a sample."""
    latents_mean: float
    speech: int
    """Tokens of the longest speech."""
    text: float = 0.0
    """Real tokens of a prompt beside its visual ones, on average."""
    spoken: float = 0.0
    """Real tokens of a speech, on average."""
    padded: bool = True
    """Whether prompts differ in length, so that attention takes a mask."""
    vision_only: bool = False
    """Objective vision: the language model does not run."""

    def of(self, samples: int) -> "BatchSizes":
        """The same with more or fewer samples."""
        share = samples / self.samples
        padded = self.padded and samples > 1
        return replace(
            self, samples=samples, pictures=self.pictures * share, patches=self.patches * share, padded=padded
        )


@dataclass(frozen=True)
class StageSizes:
    """Batches of one stage."""

    stage: Stage
    batches: tuple[BatchSizes, ...]
    samples: int | None
    """Training samples; None where they never end."""
    measured: bool
    """Drawn from the data; else from `Expected`."""


def drawn_sizes(
    recipe: Recipe, source: Source, processor: Processor, settings: ReasonerSettings, count: int = DRAWN
) -> list[StageSizes]:
    """Batches of every stage that trains, drawn as a run draws them."""
    curriculum = Curriculum(recipe, source, processor, settings.think)
    found: list[StageSizes] = []
    for index, stage in enumerate(recipe.stages):
        if stage.updates == 0:
            continue
        wanted = stage.batch_size or recipe.batch_size
        batches: list[BatchSizes] = []
        for _ in range(count):
            draw = curriculum.draw(index)
            made = curriculum.collate(draw.stage, draw.samples[:_MOST_PICTURES])
            batches.append(sizes_of(made, processor).of(wanted))
        found.append(StageSizes(stage, tuple(batches), source.num_samples(stage), measured=True))
    return found


def sizes_of(batch: TrainBatch | VisionBatch, processor: Processor) -> BatchSizes:
    """Those of a collated batch."""
    if isinstance(batch, VisionBatch):
        count, tokens = len(batch.grids), sum(len(labels) for labels in list(batch.labels.values())[:1])
        return BatchSizes(count, 0, tokens / count, count, len(batch.pixel_values), 0, 0.0, 0, vision_only=True)
    count = len(batch.input_ids)
    visual = float(((batch.input_ids == processor.image_id) & batch.prompt_mask).sum()) / count
    real: Any = batch.prompt_mask.sum(1)
    return BatchSizes(
        samples=count,
        prompt=batch.input_ids.shape[1],
        visual=visual,
        pictures=float(sum(batch.images_per_sample)),
        patches=0.0 if batch.pixel_values is None else float(len(batch.pixel_values)),
        latents=int(batch.num_latents.max()),
        latents_mean=float(batch.num_latents.float().mean()),
        speech=batch.speech_ids.shape[1],
        text=float(real.float().mean()) - visual,
        spoken=float(batch.speech_mask.sum()) / count,
        padded=bool((real != batch.input_ids.shape[1]).any()),
    )


def expected_sizes(
    recipe: Recipe, expected: Expected, geometry: Geometry, settings: ReasonerSettings
) -> list[StageSizes]:
    """Batches of every stage that trains, of samples that are all as `expected`."""
    return [
        StageSizes(stage, (_expected_batch(recipe, stage, expected, geometry, settings),), expected.samples, False)
        for stage in recipe.stages
        if stage.updates != 0
    ]


def _expected_batch(
    recipe: Recipe, stage: Stage, expected: Expected, geometry: Geometry, settings: ReasonerSettings
) -> BatchSizes:
    count = stage.batch_size or recipe.batch_size
    grid = geometry.with_max_pixels(recipe.max_pixels).grid(*expected.picture)
    shown, seen = geometry.num_prompt_tokens(grid), geometry.num_visual_tokens(grid)
    text, pictures = expected.question_tokens, expected.pictures
    most = settings.think.max_latent_steps
    latents = num_latents(expected.steps, stage, most)
    replaced = num_replaced(expected.steps, latents, most if stage.latent_steps != 0 else None)
    left = 0 if stage.spoken_steps != "rest" else expected.steps - replaced
    spoken = left * expected.step_tokens + expected.answer_tokens
    # A sample with fewer pictures than the average one pads up to those with more.
    prompt = text + shown * math.ceil(pictures)
    return BatchSizes(
        count, prompt, seen * pictures, count * pictures, geometry.num_patches(grid) * count * pictures, latents,
        float(latents), spoken, text + (shown - seen) * pictures, spoken,
    )  # fmt: skip


def widest(sizes: Sequence[BatchSizes]) -> BatchSizes:
    """A batch that is in everything as large as the largest of these: what memory must hold."""
    first = max(sizes, key=lambda one: one.prompt + one.speech)
    return replace(
        first,
        prompt=max(one.prompt for one in sizes),
        visual=max(one.visual for one in sizes),
        pictures=max(one.pictures for one in sizes),
        patches=max(one.patches for one in sizes),
        latents=max(one.latents for one in sizes),
        speech=max(one.speech for one in sizes),
        padded=any(one.padded for one in sizes),
    )
