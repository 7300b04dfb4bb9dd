"""`lrkit ask --data` and `lrkit eval --out`: options that both have, and the way from them to `answer_lines`.

A signal ends the work at once, as every shard that is done is on the disk: exit code 75 where a scheduler sent it, 130
for Ctrl-C. The same command goes on.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from lrkit.cli.shared.console import bars, err
from lrkit.errors import UserError

if TYPE_CHECKING:
    from lrkit.batch.answer_lines import Answered
    from lrkit.runtime.sdk import Reasoner

LINES = "Many lines"
RAY = "ray"
"""Of --engine, alone or before a colon and an engine of bundles."""


def _of_lines(*names: str, help: str, **limits: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=LINES, **limits)


Out = Annotated[Path | None, _of_lines("--out", "-o", help="Folder of answers.jsonl; one that was begun goes on.")]
Workers = Annotated[int | None, _of_lines(help="Of --engine ray: processes, each with --threads cores.", min=1)]
SkipBad = Annotated[bool, _of_lines("--skip-bad", help="A line that cannot be used becomes a row with its error.")]
ShardLines = Annotated[int | None, _of_lines(help="Lines that become one file at once. [default: 128]", min=1)]


@dataclass(frozen=True)
class Where:
    """What runs a model, as the options of a verb say."""

    device: str | None
    provider: str | None
    threads: int | None
    engine: str | None
    engine_options: list[str] | None
    dtype: str
    attention: str | None
    adapter: str | None = None

    @property
    def on_ray(self) -> bool:
        return self.engine is not None and self.engine.partition(":")[0] == RAY

    def values(self) -> dict[str, Any]:
        """As `AskedModel` and `Reasoner.open` take them, the adapter aside. Raises where there is no such engine."""
        from lrkit.runtime.engines.table import engine_row, parse_options

        inner = self.engine.partition(":")[2] or None if self.engine is not None and self.on_ray else self.engine
        if inner is not None:
            engine_row(inner)
        options = parse_options(self.engine_options or [], inner)
        given = {name: getattr(self, name) for name in ("device", "provider", "threads", "dtype", "attention")}
        return {**given, "engine": inner, "engine_options": options}

    def open(self, model: str) -> "Reasoner":
        """Opens the model in this process."""
        from lrkit.runtime.sdk import Reasoner

        if self.on_ray:
            raise UserError("--engine ray answers the lines of a file; give them as --data, and a folder as --out")
        return Reasoner.open(model, **self.values())


@dataclass(frozen=True)
class Lines:
    """What the options of a verb say of many lines."""

    data: str | None
    out: Path | None
    workers: int | None
    skip_bad: bool
    shard_lines: int | None
    batch_size: int | None = None

    def are_asked(self, alone: Mapping[str, Any]) -> bool:
        """Whether there are lines; `alone` are the options, by name, that belong to a question on the command line.

        Raises:
            UserError: there is neither a question nor lines, or options are of the other kind.
        """
        if self.data is not None:
            if (given := next((name for name, value in alone.items() if value), None)) is not None:
                raise UserError(f"{given} is for a question on the command line, and --data has its own; leave it out")
            return True
        own = {"--out": self.out, "--workers": self.workers, "--skip-bad": self.skip_bad}
        own |= {"--shard-lines": self.shard_lines, "--batch-size": self.batch_size}
        if (given := next((name for name, value in own.items() if value), None)) is not None:
            raise UserError(f"{given} is for the lines of a file; give them as --data")
        if not alone.get("QUESTION"):
            raise UserError("QUESTION is missing; give one, or a file of questions as --data")
        return False

    def are_measured(self, where: Where, sets: Sequence[str]) -> bool:
        """Whether `sets`, as `lrkit eval` is given them, are answered into a folder.

        Raises:
            UserError: there is not one file, or an option of lines without a folder.
        """
        own = {"--engine ray": where.on_ray, "--workers": self.workers, "--skip-bad": self.skip_bad}
        own |= {"--shard-lines": self.shard_lines}
        given = next((name for name, value in own.items() if value), None)
        if self.out is None and given is not None:
            raise UserError(f"{given} is for lines that are answered into a folder; give one as --out")
        if self.out is not None and len(sets) != 1:
            raise UserError("--out is for the lines of one file, or of a pattern; give it as --data, once")
        return self.out is not None

    def answer(self, model: str, where: Where, **options: Any) -> "Answered":
        """Answers all lines, with a bar; `options` are those of `LineOptions`."""
        from lrkit.batch.answer_lines import answer_lines
        from lrkit.batch.job import AskedModel, LineOptions

        if self.data is None or self.out is None:
            raise UserError("many lines are answered into a folder; give one as --out")
        asked = AskedModel(model=model, adapter=where.adapter, **where.values())
        named = {"shard_lines": self.shard_lines, "batch_size": self.batch_size}
        options |= {name: value for name, value in named.items() if value is not None}
        chosen = LineOptions(skip_bad=self.skip_bad, **options)
        how: Any = {"on_ray": where.on_ray, "workers": self.workers}
        with _stopping(), _bar(self.data) as progress:
            done = answer_lines(asked, self.data, self.out, chosen, **how, on_progress=progress)
        before = done.rows - done.answered_now
        told = f", {before} of them before" if before else ""
        err(soft_wrap=True).print(f"{done.rows} lines answered{told}: {done.answers}")
        if errors := sum(mode["errors"] for mode in done.figures["modes"].values()):
            err(soft_wrap=True).print(f"note: {errors} rows hold an error in place of an answer")
        return done


@contextmanager
def _bar(name: str) -> Generator[Callable[[int, int], None]]:
    with bars(MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _stopping() -> Generator[None]:
    """A context in which the signals of people and of schedulers end the work, each with its exit code."""
    from lrkit.train.stop_signals import AGAIN, TrainingInterrupted, stop_on_signals

    try:
        with stop_on_signals():
            yield
    except TrainingInterrupted as stop:
        who = "a scheduler" if stop.exit_code == AGAIN else "hand"
        raise TrainingInterrupted(
            f"stopped by {who}; the same command goes on from what is done", stop.exit_code
        ) from stop
