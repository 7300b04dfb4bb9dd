"""Keeps a run's state: when it is saved, what belongs into it, and how a stage goes on from it.

the loop (lrkit/train/loop.py) -> `Keeper` -> state.pt (lrkit/train/training_state.py)
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from lrkit.errors import one_line
from lrkit.train.accelerator import mean_over_processes, share_of
from lrkit.train.ahead import Ahead
from lrkit.train.failures import StateError, check_finite
from lrkit.train.log_sums import Sums
from lrkit.train.metrics import MetricsWriter
from lrkit.train.origin import Origin
from lrkit.train.recipe import Recipe
from lrkit.train.replicas import Held
from lrkit.train.retention import prune
from lrkit.train.run_report import write_run
from lrkit.train.share import Share
from lrkit.train.stage import OptimizerConfig, Stage
from lrkit.train.together import as_one, gathered
from lrkit.train.training_state import (
    Place,
    Saved,
    random_state,
    restore,
    save_state,
    set_random_state,
    trained_state,
)
from lrkit.train.validate import Validator


@dataclass
class StageRun:
    """What lives as long as one stage."""

    index: int
    stage: Stage
    total: int
    """Budget in updates."""
    model: nn.Module
    """The objective as accelerate wraps it."""
    held: Held
    """Its weights and optimizers, over all processes."""
    config: OptimizerConfig
    validator: Validator


@dataclass
class Keeper:
    """Saves the state of one run."""

    folder: Path
    recipe: Recipe
    origin: Origin
    place: Place
    reasoner: nn.Module
    batches: Ahead
    sums: Sums
    seconds: Callable[[], float]
    """Time spent in the run so far."""
    metrics: MetricsWriter | None = None
    """None until the first state is written, which is the first file of a run."""

    def save(self, accelerator: Accelerator, now: StageRun | None) -> None:
        """Writes the state; without a stage, that of a run which begins. All processes take part.

        Raises:
            FileError: it cannot be written; the older one is as it was.
        """
        self.place.metrics_bytes = 0 if self.metrics is None else self.metrics.num_bytes()
        self.place.seconds = self.seconds()
        own = {"random": random_state(), "curriculum": self.batches.state()}
        processes = gathered(accelerator, own)
        values = self.sums.values
        sums = {name: mean_over_processes(accelerator, values[name]) for name in sorted(values)}
        with nullcontext() if now is None else now.held.whole(), as_one(accelerator):
            states = [] if now is None else now.held.optimizer_states()
            if accelerator.is_main_process:
                owner = self._owner(accelerator, now)
                save_state(self.folder, self.recipe, self.place, owner, states, sums, processes, self.origin)
                # Not what stages left: run.json may name it until `tidy`.
                prune(self.folder, self.place.finished, self.place.best, None)

    def tidy(self, accelerator: Accelerator) -> None:
        """run.json as the state says, and then nothing that it does not name."""
        if accelerator.is_main_process:
            write_run(self.folder, self.recipe, self.place)
            prune(self.folder, self.place.finished, self.place.best, self.recipe.keep_last)

    def go_on(self, accelerator: Accelerator, now: StageRun, saved: Saved) -> None:
        """Puts a stage back to where it was saved.

        Raises:
            StateError: the state is that of another model, or cannot be read.
        """
        _refuse_own_draws(saved)
        with now.held.whole():
            restore(self._owner(accelerator, now), now.held, saved)
        self.sums.load(saved.meter, accelerator.device)
        self.sums.reshare(Share(0, len(saved.processes), self.recipe.accumulate), share_of(accelerator, self.recipe))
        try:
            self.batches.load_state(saved.processes[0]["curriculum"])  # all have drawn the same
            if accelerator.process_index < len(saved.processes):
                set_random_state(saved.processes[accelerator.process_index]["random"])
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise StateError(
                f"the saved draws and random states cannot be read ({one_line(error)}); start a new run"
            ) from error

    @contextmanager
    def on_bad_data(self, accelerator: Accelerator, now: StageRun) -> Generator[None]:
        """A context in which data that cannot be read, by whichever process, end the run, with its earlier state saved,
        so that nothing is lost. All processes take part."""
        drawn = self.batches.state()

        def save() -> None:
            self.batches.load_state(drawn)
            self.save(accelerator, now)

        with as_one(accelerator, save):
            yield

    def check_finite(self, accelerator: Accelerator, now: StageRun) -> None:
        """Raises Diverged where a weight is NaN or infinite."""
        weights = trained_state(accelerator.unwrap_model(now.model))
        with as_one(accelerator):
            check_finite(weights, now.stage.name, self.place.update)

    def _owner(self, accelerator: Accelerator, now: StageRun | None) -> nn.Module:
        """Before a stage's first update only the reasoner has a history; after it, what the stage adds has one too."""
        if now is None or not self.place.update:
            return self.reasoner
        return accelerator.unwrap_model(now.model)


def _refuse_own_draws(saved: Saved) -> None:
    """Raises `StateError` for a state in which every process drew batches of its own, as lrkit once did."""
    kept: list[Any] = saved.processes  # of any kind, in a file that someone changed
    draws = [own.get("curriculum") for own in kept if isinstance(own, dict)]
    if any(draw != draws[0] for draw in draws[1:]):
        raise StateError(
            f"the run was begun by a lrkit whose {len(draws)} processes each drew batches of their own; go on with "
            "that version, or start a new run"
        )
