"""A stage to batches: what is drawn, how many of its steps are latent, and when an earlier stage is rehearsed.

    Stage + Source -> samples -> TrainBatch (objective reason) or VisionBatch (objective vision)

All chance comes from one numpy Generator, and its state is saved with the run. So a resumed run draws the batches that
the uninterrupted one would have drawn. Every process draws all batches, and collates its own part (share.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lrkit.contract.sample import Sample
from lrkit.contract.settings import ThinkSettings
from lrkit.data.collate import Pointing, TrainBatch, collate_training
from lrkit.data.sources import Source
from lrkit.runtime.encode.processor import Processor
from lrkit.train.recipe import Recipe
from lrkit.train.share import Share
from lrkit.train.stage import Stage
from lrkit.train.vision import VisionBatch, collate_vision


@dataclass(frozen=True)
class Draw:
    """Samples of one batch, and the stage whose rules they follow (an earlier one when rehearsing)."""

    stage: Stage
    samples: list[Sample]
    silent: bool = False
    """Nothing of it counts: it stands in for a process that has no part in a small batch, and must run all the same."""


class Curriculum:
    """Draws the batches of a recipe's stages."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        processor: Processor,
        think: ThinkSettings,
        share: Share | None = None,
        pointing: Pointing | None = None,
    ) -> None:
        """`share`: what this process computes of the batches; None: all. `pointing`: who says where to look."""
        self._recipe = recipe
        self._source = source
        self._processor = processor
        self._max_latent_steps = think.max_latent_steps
        self._at_once = think.latents == "parallel"
        self._pointing = pointing
        self._share = Share() if share is None else share
        # As the first of several processes drew, once, when each drew for itself: old runs go on as they began.
        self._rng = np.random.default_rng([recipe.seed, 0])

    def draw(self, index: int) -> Draw:
        """This process's samples of one batch of stage `index`; what others compute beside it is drawn and left."""
        drawn = [self._draw(index) for _ in range(self._share.groups)][self._share.turn]
        own = self._share.part(drawn.samples)
        return Draw(drawn.stage, own or drawn.samples[:1], silent=not own)

    def _draw(self, index: int) -> Draw:
        stage = self._recipe.stages[index]
        if stage.rehearsal_fraction and self._rng.random() < stage.rehearsal_fraction:
            earlier = rehearsed(self._recipe.stages, index)
            stage = earlier[int(self._rng.integers(len(earlier)))]
        count = stage.batch_size or self._recipe.batch_size
        return Draw(stage, self._source.draw(stage, count, self._rng))

    def batch(self, index: int) -> TrainBatch | VisionBatch:
        """The next batch of stage `index`."""
        return self.made(self.draw(index))

    def made(self, draw: Draw) -> TrainBatch | VisionBatch:
        """What was drawn, as the model takes it."""
        batch = self.collate(draw.stage, draw.samples)
        if not draw.silent:
            return batch
        assert isinstance(batch, TrainBatch), "labels of visual tokens come in batches that are never small"
        weights, latents = torch.zeros_like(batch.speech_weights), torch.zeros_like(batch.num_latents)
        return replace(batch, speech_weights=weights, num_latents=latents, looks=None, taught=None, overlap=None)

    def collate(self, stage: Stage, samples: Sequence[Sample]) -> TrainBatch | VisionBatch:
        """Samples under the rules of a stage."""
        if stage.objective == "vision":
            return collate_vision(self._processor, samples, tuple(stage.readouts))
        latents = [num_latents(len(sample.steps), stage, self._max_latent_steps) for sample in samples]
        made = collate_training(
            self._processor,
            samples,
            latents,
            stage.spoken_steps,
            self._recipe.token_weights,
            max_latent_steps=self._max_latent_steps if stage.latent_steps != 0 else None,
            pointing=self._pointing,
        )
        if self._at_once and stage.latent_steps == "all":  # as in use, where nobody knows how long the chain is
            made = replace(made, num_latents=torch.full_like(made.num_latents, self._max_latent_steps))
        return made

    def state(self) -> dict[str, Any]:
        """What `load_state` needs: plain values."""
        return {"rng": self._rng.bit_generator.state, "source": self._source.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Draw on from `state`."""
        self._rng.bit_generator.state = state["rng"]
        self._source.load_state(state["source"])


def num_latents(num_steps: int, stage: Stage, max_latent_steps: int) -> int:
    """Latent steps of a sample: those of the stage, but never more than its steps or the model's limit."""
    asked = num_steps if stage.latent_steps == "all" else stage.latent_steps
    return min(num_steps, asked, max_latent_steps)


def rehearsed(stages: Sequence[Stage], index: int) -> list[Stage]:
    """The stages that stage `index` draws its rehearsal from."""
    wanted = stages[index].rehearse
    return [stage for stage in stages[:index] if stage.objective == "reason" and (not wanted or stage.name in wanted)]


def num_updates(stage: Stage, samples: int | None, samples_per_update: int) -> int:
    """The stage's budget in updates; epochs count its training samples, rounded up."""
    if stage.updates is not None:
        return stage.updates
    assert stage.epochs is not None and samples is not None  # the recipe's checks
    return max(1, -int(-stage.epochs * samples // samples_per_update))
