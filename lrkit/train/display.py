"""What a run shows: a progress bar on a terminal, lines elsewhere, and samples at the end of each stage."""

import time
from collections.abc import Mapping
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lrkit.errors import clean
from lrkit.train.stage import Stage
from lrkit.train.validate import Spoken, Validation

_SECONDS_BETWEEN_LINES = 30.0


class Display:
    """Shows a run on standard error; `quiet` shows nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, figures="")
        self._accuracy = ""
        self._last_line = time.monotonic()

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line; where standard error takes none (a full disk, a reader that went away) the run goes on."""
        with suppress(OSError):
            self._console.print(clean(text), markup=False)

    def start_stage(self, index: int, stages: int, stage: Stage, done: int, total: int) -> None:
        """A new bar."""
        self._accuracy = ""
        self._bar.reset(
            self._task, description=f"{index + 1}/{stages} {clean(stage.name)}", total=total, completed=done, figures=""
        )
        self.say(f"stage {index + 1}/{stages} {stage.name}: {total} updates" + (f", {done} done" if done else ""))

    def advance(self, done: int) -> None:
        """Updates done in the stage."""
        self._bar.update(self._task, completed=done)

    def figures(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Loss and token accuracy of the last updates."""
        text = f"loss {values['loss']:.3f} tokens {values['token_accuracy']:.1%}{self._accuracy}"
        self._bar.update(self._task, figures=text)
        if self._bar.disable and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"  {done}/{total} {text}")

    def validation(self, done: int, found: Validation) -> None:
        """Accuracies."""
        if not found.accuracy:
            return
        parts = ", ".join(f"{name}: {value:.1%}" for name, value in found.accuracy.items())
        steps = ", ".join(f"{name}: {value:.2f}" for name, value in found.latent_steps.items() if value)
        self._accuracy = f" right {found.mean:.1%}"
        self.say(f"  after {done} updates right by length {parts}" + (f"; latent steps {steps}" if steps else ""))

    def samples(self, answers: list[Spoken]) -> None:
        """Question, target and what the model says."""
        for answer in answers:
            mark = "right" if answer.right else "wrong"
            thought = f" after {answer.latent_steps} latent steps" if answer.latent_steps else ""
            self.say(f"  asked:  {answer.sample.question}")
            self.say(f"  target: {answer.sample.answer}")
            self.say(f"  says:   {answer.text} ({mark}{thought})")
