"""A run from beginning to end: checks, the folder's lock, the model, and then the loop over the stages.

recipe -> checks -> folder -> data, model -> Trainer (lrkit/train/loop.py) -> the last checkpoint
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator

from lrkit.contract.attention import check_attention
from lrkit.data.sources import Source
from lrkit.errors import CheckpointError, ConfigError, require
from lrkit.model.open_backbone import use_attention
from lrkit.model.recomputed import recompute_layers
from lrkit.resources import REASONER_FILE
from lrkit.train.accelerator import ignored_environment, make_accelerator
from lrkit.train.checks import check_start
from lrkit.train.display import Display
from lrkit.train.failures import GO_ON, told
from lrkit.train.loop import Trainer
from lrkit.train.origin import Origin, compare, environment, sizes_digest
from lrkit.train.recipe import Recipe
from lrkit.train.retention import prune
from lrkit.train.run_folder import check_folder, held_folder
from lrkit.train.run_report import write_recipe, write_run
from lrkit.train.share import refuse_share
from lrkit.train.start import Start, load_start
from lrkit.train.stop_signals import StopRequest, stop_on_signals
from lrkit.train.together import as_one, gathered
from lrkit.train.training_state import Saved, load_state
from lrkit.train.watch import watched


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    stop: Callable[[], bool] | None = None,
    go_on: str = GO_ON,
) -> Path:
    """Trains `recipe` into `folder` and returns the folder of the last checkpoint.

    `resume` goes on from the folder's state; in an empty folder, or where there is none, the run starts. A finished run
    is not repeated. `stop` is asked between updates whether to save and stop, beside the signals.
    `go_on` says behind a failure how to go on.

    Raises:
        UserError: the recipe cannot be run; `folder` holds a run and `resume` is False, or something else than a run;
            another process trains in it; data or `init` are no longer those of the run; disk or memory are full.
        TrainingInterrupted: a signal (lrkit/train/stop_signals.py) or `stop`; the state is saved.
    """
    with stop_on_signals(stop) as request:
        accelerator = make_accelerator(recipe)
        with told(), watched(accelerator, go_on):
            return _train(accelerator, recipe, folder, resume, quiet, request, go_on)


def _train(
    accelerator: Accelerator,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    quiet: bool,
    request: StopRequest,
    go_on: str,
) -> Path:
    main = accelerator.is_main_process
    with as_one(accelerator):
        settings = check_start(recipe)
        for name in recipe.trackers:
            require(name, name)
        check_folder(folder, resume)
        refuse_share(recipe, accelerator.num_processes)
        source = recipe.data.open(recipe.seed, recipe.stages)
        computed = "bfloat16" if accelerator.mixed_precision == "bf16" else "float32"
        check_attention(recipe.attention, str(accelerator.device), computed)
    with ExitStack() as holding:
        with as_one(accelerator):
            if main:
                holding.enter_context(held_folder(folder))
            # Looked at again: only now can no other run write here.
            saved = load_state(folder, recipe) if check_folder(folder, resume) else None
        _same_folder(accelerator, folder, saved)
        if saved is not None and saved.place.stage == len(recipe.stages):
            return _finished(recipe, folder, saved, main)
        torch.manual_seed(recipe.seed)
        half = accelerator.mixed_precision == "bf16" and recipe.trainable == "lora"
        dtype = torch.bfloat16 if half else torch.float32
        with as_one(accelerator), told():
            start = load_start(recipe, settings, dtype)
            start.reasoner.to(accelerator.device)
            use_attention(start.reasoner.backbone, recipe.attention)
            if recipe.gradient_checkpointing:
                recompute_layers(start.reasoner.backbone)
            origin = _origin(source, start, accelerator)
            notes = compare(saved.origin, origin, folder) if main and saved is not None else []
        with Display(quiet or not main) as display, told(go_on):
            if (note := ignored_environment(recipe)) is not None:
                display.say(note)
            trainer = Trainer(recipe, folder, accelerator, start, source, origin, display, request)
            return trainer.run(saved, notes)


def _same_folder(accelerator: Accelerator, folder: Path, saved: Saved | None) -> None:
    """Raises `ConfigError` where machines do not see the same folder: they would go on from different places."""
    seen = gathered(accelerator, None if saved is None else saved.place.total_updates)
    with as_one(accelerator):
        if any(one != seen[0] for one in seen):
            raise ConfigError(
                f"{folder} is not the same on all machines of the run; give a folder with -o that all of them see"
            )


def _finished(recipe: Recipe, folder: Path, saved: Saved, main: bool) -> Path:
    """The last checkpoint of a finished run. A run killed between its last two writes has no right run.json yet."""
    checkpoint = folder / saved.place.finished[-1]["checkpoint"]
    if not (checkpoint / REASONER_FILE).is_file() or not any(checkpoint.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds a finished run, but {checkpoint} is not there or not whole; copy it back, or start a new "
            "run with -o"
        )
    if main:
        write_recipe(recipe, folder)
        write_run(folder, recipe, saved.place)
        prune(folder, saved.place.finished, saved.place.best, recipe.keep_last)
    return checkpoint


def _origin(source: Source, start: Start, accelerator: Accelerator) -> Origin:
    """What the run depends on; files are read by the main process alone, which compares them and keeps them."""
    if not accelerator.is_main_process:
        return Origin()
    return Origin(
        source.files(),
        sizes_digest(source.pictures()),
        start.files(),
        accelerator.num_processes,
        environment(accelerator.mixed_precision, accelerator.device),
    )
