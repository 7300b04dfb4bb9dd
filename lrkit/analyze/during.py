"""While a model learns: the same samples at each cadence, one file of rows each.

    RUN/analysis/000100-03-two.jsonl     the rows after 100 updates of the run, in stage 3, `two`

Place in the pipeline: train/observer.py loads this by name -> `GradientObserver` -> analysis_set.py -> rows.py. A
resumed run writes the same files again, with the same rows.
"""

from pathlib import Path

import numpy as np

from lrkit.analyze.analysis_set import hops_of, measure
from lrkit.analyze.rows import Row, read_lines, write_lines
from lrkit.contract.sample import Sample
from lrkit.data.collate import TrainBatch
from lrkit.data.sources import Source
from lrkit.errors import DataError
from lrkit.train.observer import Watched
from lrkit.train.recipe import Recipe
from lrkit.train.stage import Stage

ANALYSIS_FOLDER = "analysis"
_DRAWS = 10_500
"""Beside a recipe's seed: the random numbers of an analysis are no others'."""


class GradientObserver:
    """An `Observer` (lrkit/train/observer.py)."""

    def __init__(self, watched: Watched) -> None:
        config = watched.recipe.analyze
        assert config is not None
        self._watched, self._config = watched, config
        self._stage: Stage | None = None
        self._source: Source | None = None
        self._samples: list[Sample] = []
        self._batches: list[TrainBatch] = []

    def due(self, stage: Stage, done: int) -> bool:
        """As `Observer.due`."""
        return done % self._config.every == 0

    def look(self, stage: Stage, updates: int) -> None:
        """As `Observer.look`."""
        self._prepare(stage)
        hops = [hops_of(sample) for sample in self._samples]
        rows = measure(self._watched.reasoner, self._batches, hops, updates, stage.name, self._watched.autocast)
        name = f"{updates:06d}-{self._watched.recipe.stages.index(stage):02d}-{stage.name}.jsonl"
        write_lines(rows, self._watched.folder / ANALYSIS_FOLDER / name)

    def _prepare(self, stage: Stage) -> None:
        if self._stage is stage:
            return
        # A source of its own: the run's goes on from where it stands, and a thread draws from it meanwhile.
        recipe = self._watched.recipe
        self._source = self._source or recipe.data.open(recipe.seed, recipe.stages)
        self._samples = draw(self._source, recipe, stage, self._config.samples)
        self._batches = [self._watched.collate(stage, [sample]) for sample in self._samples]
        self._stage = stage


def draw(source: Source, recipe: Recipe, stage: Stage, count: int) -> list[Sample]:
    """`count` training samples as the stage draws them, the same each time and in each stage with the same draws."""
    rng = np.random.default_rng([recipe.seed, _DRAWS])
    samples: list[Sample] = []
    while len(samples) < count:  # a source may give fewer at a time
        samples += source.draw(stage, count - len(samples), rng)
    return samples


def read_recorded(run: Path) -> list[Row]:
    """The rows that a run wrote while it trained, in order.

    Raises:
        DataError: it wrote none, or they cannot be read.
    """
    files = sorted((run / ANALYSIS_FOLDER).glob("*.jsonl"))
    if not files:
        raise DataError(
            f"{run} has no {ANALYSIS_FOLDER} folder with rows; train with analyze.every=100, or leave --recorded out, "
            "which analyses the checkpoints of its stages"
        )
    return [row for file in files for row in read_lines(file)]
