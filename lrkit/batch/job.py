"""What is asked of which lines by which model, and the folder where that stands. Torch-free.

    FOLDER/job.json         model, data and options, by their digests; "complete" once all is answered
    FOLDER/shards/N.jsonl   the answers of shard N, whole; gone when they are joined
    FOLDER/answers.jsonl    all answers, in the order of the lines, once all are there

Place in the pipeline: answer_lines.py makes a `Job`; every worker is given one. A folder that was begun goes on where
its model, data and options are the same.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lrkit.batch.line_files import LineFile, Made, Span, open_lines
from lrkit.contract.bundle.bundle_folder import is_bundle
from lrkit.contract.generated import Mode
from lrkit.data.jsonl import JsonlScan
from lrkit.errors import DataError, UserError, clean, one_line
from lrkit.files import WRITING, read_json, remove, sha256, write_json
from lrkit.provenance import collect
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.sdk import Reasoner

SCHEMA = 1
"""Of job.json."""
SHARD_LINES = 128
"""Lines of a shard: what a kill can cost, and what a worker reads at once."""
_UNLIKE = {
    "model": "answers of another model",
    "data": "answers to other lines, or the data changed since",
    "options": "answers that were asked for with other options",
}


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """A model, and what runs it on every worker; as of `Reasoner.open`."""

    model: str
    device: str | None = None
    provider: str | None = None
    threads: int | None = None
    """Of one worker; None: one on Ray, all cores otherwise."""
    engine: str | None = None
    engine_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dtype: str | None = None
    attention: str | None = None
    adapter: str | None = None

    def open(self) -> Reasoner:
        """The model, loaded. Raises as `Reasoner.open`."""
        threads = self.threads if is_bundle(self.model) else None
        given = self.engine, self.engine_options, self.dtype, self.attention
        reasoner = Reasoner.open(self.model, self.device, self.provider, threads, *given)
        return reasoner if self.adapter is None else reasoner.with_adapter(self.adapter)

    def digest(self) -> str:
        """Names the model by the content of its files: of a bundle its manifest, which has the digests of the others.

        Raises:
            CheckpointError: there is none.
        """
        if is_bundle(self.model):
            return sha256(Path(self.model) / "bundle.json")[0]
        folder, digest = resolve_checkpoint(self.model), hashlib.sha256()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(folder).as_posix()} {sha256(file)[0]}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class LineOptions:
    """How lines are asked."""

    modes: tuple[Mode, ...] = ("latent",)
    batch_size: int = 32
    """Lines answered at once."""
    max_new_tokens: int | None = None
    max_latent_steps: int | None = None
    max_pixels: int | None = None
    choices: Literal["said", "scored"] = "said"
    """As of `EvalOptions`."""
    scored: bool = False
    """Lines have answers, and each row says whether the model's is right."""
    skip_bad: bool = False
    """A line that cannot be used becomes a row with its error; otherwise the work is refused."""
    limit: int | None = None
    """Lines of each file that are asked; None: all."""
    shard_lines: int = SHARD_LINES


@dataclass(frozen=True)
class Shard:
    """One unit of work: some lines of a file, whose answers become one file at once."""

    number: int
    """From 0, over all files."""
    file: int
    """Which of the files."""
    span: Span

    def values(self) -> dict[str, Any]:
        """Plain values, as a row of a table."""
        return {"number": self.number, "file": self.file, **asdict(self.span)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Shard":
        """What `values` gave."""
        span = {name: values[name] for name in ("first", "lines", "rows", "start")}
        whole = {name: int(value) for name, value in span.items()}
        return cls(int(values["number"]), int(values["file"]), Span(**whole, sha256=str(values["sha256"])))


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, beside the shard."""

    folder: Path
    data: str
    model: AskedModel
    options: LineOptions

    @property
    def answers(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def tries(self) -> Path:
        """A file for each shard that was begun on Ray, with a byte for each time."""
        return self.folder / "tries"

    @property
    def manifest(self) -> Path:
        return self.folder / "job.json"

    @cached_property
    def files(self) -> tuple[LineFile, ...]:
        """Raises `DataError` where one is not there."""
        return open_lines(self.data, self.options.scored)

    def result(self, shard: Shard) -> Path:
        """Where the answers of a shard go."""
        return self.shards / f"{shard.number:07d}.jsonl"

    def named(self, shard: Shard) -> str:
        """A shard in messages."""
        last = shard.span.first + shard.span.lines - 1
        return f"shard {shard.number} (lines {shard.span.first} to {last} of {clean(str(self.files[shard.file].path))})"

    def survey(self) -> list[Shard]:
        """Reads all files once: their shards, in order. Where bad lines are refused, every line is looked at.

        Raises:
            DataError: a file cannot be read or holds no line, or lines are bad, which are named.
        """
        found: list[Shard] = []
        for index, file in enumerate(self.files):
            checker = None if self.options.skip_bad else _Checker(file.path)
            for span in file.spans(self.options.shard_lines, checker, self.options.limit):
                found.append(Shard(len(found), index, span))
            if checker is not None and checker.scan.num_bad_lines:
                checker.scan.raise_if_bad()
        if not sum(shard.span.rows for shard in found):
            raise DataError(f"{one_line(self.data, 300)}: holds no line; write one JSON object per line")
        return found

    def identity(self, shards: list[Shard]) -> dict[str, Any]:
        """What answers depend on, by part. Number of workers and threads are none of it."""
        data, model = hashlib.sha256(), asdict(self.model)
        for shard in shards:
            data.update(f"{shard.file} {shard.span.first} {shard.span.lines} {shard.span.sha256}\n".encode())
        runs_on = {name: value for name, value in model.items() if name not in ("model", "threads")}
        return {
            "model": self.model.digest(),
            "data": data.hexdigest(),
            "options": {**asdict(self.options), "modes": list(self.options.modes), **runs_on},
        }

    def begin(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """Makes the folder, or goes on in it; returns job.json.

        Raises:
            UserError: there is something else in it.
        """
        if self.manifest.is_file():
            found = read_json(self.manifest, UserError)
            if (unlike := next((part for part in identity if found.get(part) != identity[part]), None)) is not None:
                said = _UNLIKE[unlike] if found.get("kind") == "answers" else "something else"
                raise UserError(f"{clean(str(self.folder))}: holds {said}; give another folder, or remove this one")
            return found
        if self.folder.is_dir() and not all(self._is_left(path.name) for path in self.folder.iterdir()):
            raise UserError(f"{clean(str(self.folder))}: is not empty and holds no answers; give another folder")
        names = {"model_name": self.model.model, "data_name": self.data}
        job = {"schema": SCHEMA, "kind": "answers", "complete": False, **names, **identity, "provenance": collect()}
        write_json(self.manifest, job)
        return job

    def _is_left(self, name: str) -> bool:
        """Whether a process was killed while it wrote the first job.json. Writing it takes that file away."""
        return name.startswith(WRITING) and name.endswith(f"-{self.manifest.name}")

    def forget(self) -> None:
        """Removes what only work that goes on needs."""
        remove(self.shards)
        remove(self.tries)


class _Checker:
    """Looks at every line, as `read_jsonl` does, and keeps no sample."""

    def __init__(self, path: Path) -> None:
        self.scan = JsonlScan(path)
        self._first: dict[str, int] = {}

    def __call__(self, number: int, made: Made) -> None:
        if isinstance(made, DataError):
            self.scan.add_problem(number, str(made))
        elif (first := self._first.setdefault(made.id, number)) != number:
            told = one_line(repr(made.id), 60)
            self.scan.add_problem(number, f"id {told} was used in line {first}; give each sample its own")
