"""The loop of a run: stop, save, validate, update, log, over the stages of a recipe; then report.

    for each stage: optimizers, batches, updates, checkpoint -> run.json

lrkit/train/run_folder.py describes the run's folder. state.pt is written first, so that a run can be killed at any
moment and go on. At the end of a stage come the checkpoint, then state.pt, then run.json.

accelerate handles devices, processes and bfloat16. On a CPU, an interrupted and resumed run equals the uninterrupted
run bit for bit, because the state file holds everything that the next update depends on.
"""

import copy
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lrkit.contract.sample import Sample
from lrkit.data.collate import Pointing, TrainBatch
from lrkit.data.sources import Noting, Source
from lrkit.model.checkpoint import save_checkpoint
from lrkit.runtime.encode.kept_cuts import KeptCuts
from lrkit.train.accelerator import make_accelerator, mean_over_processes, number_types, share_of
from lrkit.train.ahead import Ahead
from lrkit.train.curriculum import Curriculum, num_updates
from lrkit.train.display import Display
from lrkit.train.failures import Diverged
from lrkit.train.heartbeat import Heartbeat, State
from lrkit.train.keeper import Keeper, StageRun
from lrkit.train.loading import Pace
from lrkit.train.log_sums import Sums
from lrkit.train.metrics import MetricsWriter
from lrkit.train.observer import Watched, observer_of
from lrkit.train.optim import learning_rate, set_learning_rate
from lrkit.train.origin import Origin
from lrkit.train.recipe import FreshBackbone, Recipe, as_written, overlay
from lrkit.train.retention import best_name, ranked
from lrkit.train.run_report import checkpoint_info, write_recipe
from lrkit.train.shards import hold
from lrkit.train.stage import Stage
from lrkit.train.start import Start
from lrkit.train.stop_signals import StopRequest, TrainingInterrupted
from lrkit.train.teacher import PointingTeacher
from lrkit.train.together import any_of, as_one, gathered
from lrkit.train.trackers import Tracker, open_trackers
from lrkit.train.training_state import Place, Saved
from lrkit.train.validate import Validation, Validator
from lrkit.train.vision import VisionBatch, VisionObjective


class Trainer:
    """One run in progress."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        accelerator: Accelerator,
        start: Start,
        source: Source,
        origin: Origin,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.accelerator = accelerator
        self.start = start
        self.source = source
        self.origin = origin
        self.display = display
        self.stop = stop
        self.place = Place()
        self.sums = Sums()
        settings = start.reasoner.settings
        start.processor.kept = KeptCuts(recipe.loader.cache_bytes) if recipe.loader.cache_bytes else None
        self.teacher = pointing = None
        if recipe.teacher is not None:
            self.teacher = PointingTeacher(recipe.teacher, accelerator.device, recipe.teacher_sharpness)
        if settings.distill.pointing:
            pointing = Pointing(None if self.teacher is None else self.teacher.processor)
        self.share = share_of(accelerator, recipe)
        self.curriculum = Curriculum(recipe, source, start.processor, settings.think, self.share, pointing)
        self.batches = Ahead(self.curriculum, recipe.loader)
        self.pace = Pace(self.batches)
        watched = Watched(recipe, folder, start.reasoner, self._collated, lambda: self.accelerator.autocast())
        self.observer = observer_of(watched) if accelerator.is_main_process else None

    def run(self, saved: Saved | None, notes: Sequence[str] = ()) -> Path:
        """All stages that are left; returns the last checkpoint. `notes` tell what is other than before a break."""
        self._started = time.monotonic()
        if saved is not None:
            self.place = copy.deepcopy(saved.place)
            self._started -= saved.place.seconds
        # Dropout differs between processes; the weights, made before, do not.
        torch.manual_seed(self.recipe.seed + self.accelerator.process_index)
        self.keeper = Keeper(
            self.folder,
            self.recipe,
            self.origin,
            self.place,
            self.start.reasoner,
            self.batches,
            self.sums,
            self._seconds,
        )
        main = self.accelerator.is_main_process
        self.stop.waits = True
        if self.recipe.trackers and not self.place.tracked_as:
            self.place.tracked_as = secrets.token_hex(4)
        if saved is None:
            self.place.stage = self._trained_from(0)
            self.keeper.save(self.accelerator, None)
        if main:
            write_recipe(self.recipe, self.folder)
        self.keeper.tidy(self.accelerator)
        purge = None if saved is None else self.place.total_updates
        written = self.folder if main else None
        with (
            MetricsWriter(written, self.place.metrics_bytes, purge) as self.metrics,
            Heartbeat(written) as self.heart,
        ):
            self.keeper.metrics = self.metrics
            if main:
                self.metrics.trackers = self._trackers()
            self._note([*notes, *filter(None, [self.metrics.note]), *self._left_out()])
            try:
                for index in range(self.place.stage, len(self.recipe.stages)):
                    if self.recipe.stages[index].updates != 0:  # else it is there for later stages to rehearse
                        self._run_stage(index, saved if saved is not None and index == saved.place.stage else None)
            finally:
                self.batches.stop()
        return self.folder / self.place.finished[-1]["checkpoint"]

    def _trackers(self) -> list[Tracker]:
        recipe = self.recipe
        return open_trackers(recipe.trackers, self.folder, recipe.name, self.place.tracked_as, as_written(recipe))

    def _trained_from(self, index: int) -> int:
        """The first stage from `index` on that trains anything; the number of stages where none does."""
        stages = self.recipe.stages
        return next((later for later in range(index, len(stages)) if stages[later].updates != 0), len(stages))

    def _note(self, notes: Sequence[str]) -> None:
        for note in notes:
            self.display.say(f"note: {note}")
            self.place.notes.append(f"after {self.place.total_updates} updates: {note}")

    def _left_out(self) -> list[str]:
        """What the data set says of samples that it left out since it was asked last."""
        return self.source.notes() if isinstance(self.source, Noting) else []

    def _run_stage(self, index: int, saved: Saved | None) -> None:
        now = self._open_stage(index)
        if saved is not None:
            self.keeper.go_on(self.accelerator, now, saved)
        self.display.start_stage(index, len(self.recipe.stages), now.stage, self.place.update, now.total)
        found: Validation | None = None
        now.model.train()
        while self.place.update < now.total:
            self._stop_or_save(now)
            found = self._validate_if_due(now)
            if found is not None and _enough(now.stage, found):
                break
            if found is not None:
                self._keep_if_best(now, found)
            self._observe(now, self.place.update)
            with self.pace.update():
                self._update(now)
            self._log_if_due(now)
            found = None
        self._close_stage(now, found or self._validate(now))

    def _open_stage(self, index: int) -> StageRun:
        stage, recipe = self.recipe.stages[index], self.recipe
        per_update = (stage.batch_size or recipe.batch_size) * recipe.accumulate
        config = overlay(recipe.optimizer, stage.optimizer)
        model: nn.Module = self.start.reasoner
        if stage.objective == "vision":
            words = recipe.data.label_words
            model = VisionObjective(self.start.reasoner, self.start.processor, stage.readouts, recipe.seed, words)
        held = hold(self.accelerator, model, config, self.start.reasoner.backbone.model, recipe.shard)
        validator = Validator(stage, recipe.eval, self.source, self.curriculum, self.start.processor, self.accelerator)
        self.sums.clear()
        total = num_updates(stage, self.source.num_samples(stage), per_update)
        return StageRun(index, stage, total, held.model, held, config, validator)

    def _stop_or_save(self, now: StageRun) -> None:
        stopping = any_of(self.accelerator, self._stopping(now, "training"))
        if stopping or (self.place.update and self.place.update % self.recipe.save_every == 0):
            self.keeper.check_finite(self.accelerator, now)
            self.keeper.save(self.accelerator, now)
        if stopping:
            stopped = TrainingInterrupted(
                f"stopped in stage {now.stage.name} after {self.place.update} of {now.total} updates; the same command "
                "with --resume goes on from here",
                self._asked_code(),
            )
            stopped.silent = not self.accelerator.is_main_process
            raise stopped

    def _stopping(self, now: StageRun, state: State) -> bool:
        """Whether this process was asked to stop. Signals reach processes one after the other: the loop asks all."""
        self._beat(now, state)
        return self.stop()

    def _asked_code(self) -> int:
        """The exit code of the first process that was asked: signals reach them one after the other, or one alone."""
        codes = gathered(self.accelerator, self.stop.exit_code if self.stop.asked else None)
        return next((code for code in codes if code is not None), self.stop.exit_code)

    def _update(self, now: StageRun) -> None:
        """One optimizer update, over `accumulate` batches, equal to one over a batch that holds them all."""
        accelerator = self.accelerator
        set_learning_rate(now.held.optimizers, learning_rate(now.config, self.place.update, now.total))
        with self.keeper.on_bad_data(accelerator, now):
            batches = [self._taught(self.batches.batch(now.index)) for _ in range(self.share.rounds)]
        counts = self._mean_counts(now, batches)
        for batch in batches:
            with accelerator.accumulate(now.model):
                loss = now.model(batch, counts)
                now.held.backward(loss.total)
                if accelerator.sync_gradients and now.config.clip:
                    norm = now.held.clip(now.config.clip)
                    self.sums.add(grad_norm=norm, clipped=torch.tensor(1.0))
                now.held.step()
            self.sums.add(loss=loss.total, batches=torch.tensor(1.0), right=loss.right_tokens, tokens=loss.num_tokens)
            if hasattr(loss, "distill"):
                self.sums.add(speech=loss.speech, distill=loss.distill)
                if self.start.reasoner.settings.distill.pointing:
                    self.sums.add(pointing=loss.pointing)
        self.place.update += 1
        self.place.total_updates += 1
        self.display.advance(self.place.update)

    def _taught(self, batch: TrainBatch | VisionBatch) -> TrainBatch | VisionBatch:
        """The batch on the device; with a teacher, after it has said where to look."""
        moved = batch.to(self.accelerator.device)
        return self.teacher.point(moved) if self.teacher is not None and isinstance(moved, TrainBatch) else moved

    def _collated(self, stage: Stage, samples: Sequence[Sample]) -> TrainBatch:
        """A batch for an observer."""
        batch = self._taught(self.curriculum.collate(stage, samples))
        assert isinstance(batch, TrainBatch), "only stages that reason are observed"
        return batch

    def _observe(self, now: StageRun, done: int | None) -> None:
        """`done` updates of the stage; None: it is over."""
        watches = self.observer is not None and now.stage.objective == "reason"
        if watches and self.observer is not None and (done is None or self.observer.due(now.stage, done)):
            alone = self.accelerator.num_processes == 1  # the others are not here
            with self.keeper.on_bad_data(self.accelerator, now) if alone else nullcontext():
                self.observer.look(now.stage, self.place.total_updates)

    def _mean_counts(self, now: StageRun, batches: Sequence[TrainBatch | VisionBatch]) -> Tensor:
        """What every batch of an update, in every process, divides its losses by."""
        objective: Any = self.accelerator.unwrap_model(now.model)
        counts = torch.stack([objective.loss_counts(batch) for batch in batches]).mean(0).to(self.accelerator.device)
        return mean_over_processes(self.accelerator, counts)

    def _log_if_due(self, now: StageRun) -> None:
        if self.place.update % self.recipe.log_every and self.place.update != now.total:
            return
        values = self.sums.figures(self.accelerator)
        with as_one(self.accelerator):
            if not math.isfinite(values["loss"]):
                raise Diverged("the loss", now.stage.name, str(values["loss"]), self.place.update)
        values["lr"] = float(now.held.optimizers[0].param_groups[0]["lr"])
        self.display.figures(self.place.update, now.total, values)
        values |= self.pace.figures(self.accelerator.num_processes)
        self._write("train", {"stage": now.stage.name, **values, "seconds": self._seconds()})

    def _validate_if_due(self, now: StageRun) -> Validation | None:
        every = self.recipe.eval.every
        due = every and self.place.update and self.place.update % every == 0
        return self._validate(now) if due else None

    def _validate(self, now: StageRun) -> Validation:
        reasoner = self.start.reasoner
        self.keeper.check_finite(self.accelerator, now)
        with self.accelerator.autocast(), self.keeper.on_bad_data(self.accelerator, now):
            model = self.accelerator.unwrap_model(now.model)
            part = now.validator(model, reasoner, lambda: self._stopping(now, "validating"))
        if (found := now.validator.joined(part)) is None:
            self.stop.asked = True
            self._stop_or_save(now)
        assert found is not None
        if found.accuracy:
            figures = {"accuracy": found.accuracy, "accuracy_mean": found.mean, "latent_steps": found.latent_steps}
            self._write("validation", {"stage": now.stage.name, **figures, "seconds": self._seconds()})
        self.display.validation(self.place.update, found)
        return found

    def _close_stage(self, now: StageRun, found: Validation) -> None:
        """Checkpoint of the stage, samples shown, and the place moved to the next stage."""
        self._observe(now, None)
        now.held.close()
        # It holds on to what it prepared; a new one lets the stage's optimizers go.
        self.accelerator = make_accelerator(self.recipe)
        self._refresh_latent_norm(now.index)
        finished = self._write_checkpoint(now, found, f"stages/{now.index:02d}-{now.stage.name}")
        if self.recipe.keep_best and found.accuracy:
            best = [*self.place.best, _rated(finished["checkpoint"], self.place.update, found)]
            finished["best"] = ranked(best, self.recipe.keep_best)
        self.display.samples(found.answers[: self.recipe.eval.show])
        self._note(self._left_out())
        self.place.finished.append(finished)
        self.place.stage, self.place.update = self._trained_from(now.index + 1), 0
        self.place.best = []
        self.sums.clear()
        self.keeper.save(self.accelerator, now)
        self.keeper.tidy(self.accelerator)
        self.accelerator.wait_for_everyone()

    def _keep_if_best(self, now: StageRun, found: Validation) -> None:
        """A checkpoint within the stage, where the recipe asks for the best ones and this is one of them so far."""
        entry = _rated(best_name(now.index, now.stage.name, self.place.update), self.place.update, found)
        best = ranked([*self.place.best, entry], self.recipe.keep_best)
        if found.accuracy and entry in best:
            self._write_checkpoint(now, found, entry["checkpoint"])
            self.place.best = best

    def _write_checkpoint(self, now: StageRun, found: Validation, name: str) -> dict[str, Any]:
        """Writes the reasoner as it is; what run.json says of it."""
        self._beat(now, "saving")
        said = {
            "name": now.stage.name,
            "checkpoint": name,
            "updates": self.place.update,
            "accuracy": found.accuracy,
            "latent_steps": found.latent_steps,
        }
        with now.held.whole():
            if self.accelerator.is_main_process:
                digest, seconds = self.source.digest(), self._seconds()
                numbers = number_types(self.accelerator, self.start.reasoner)
                info = checkpoint_info(self.recipe, self.folder / name, said, digest, seconds, self.place, numbers)
                save_checkpoint(self.folder / name, self.start.reasoner, self.start.processor, self.start.base, info)
        return said

    def _beat(self, now: StageRun, state: State) -> None:
        self.heart.beat(state, now.stage.name, self.place.update, now.total, self.place.total_updates)

    def _refresh_latent_norm(self, index: int) -> None:
        """Embeddings that start at random grow while the words are learned; latents, once in use, keep their scale."""
        stages = self.recipe.stages[: index + 1]
        if isinstance(self.recipe.init, FreshBackbone) and all(stage.latent_steps == 0 for stage in stages):
            self.start.reasoner.latent.refresh_norm(self.start.reasoner.backbone.embedding_rows())

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        self.metrics.write(kind, self.place.total_updates, values)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)


def _rated(checkpoint: str, updates: int, found: Validation) -> dict[str, Any]:
    """A validation, as the best are ranked by."""
    return {"updates": updates, "accuracy": float(found.mean), "checkpoint": checkpoint}


def _enough(stage: Stage, found: Validation) -> bool:
    """Whether a validation ends the stage early."""
    if stage.until is None:
        return False
    return (found.newest if stage.until.on == "newest" else found.mean) >= stage.until.accuracy
