"""Where a stage's samples come from: trails drawn without end, or the lines of a JSONL file in shuffled passes.

Place in the pipeline: recipe.data -> Source -> curriculum -> batches. All trails of a draw are on boards of one kind,
so that their prompts have one length. Their chains have one length too if the stage asks for equal batches.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from lrkit import __version__
from lrkit.contract.sample import Sample
from lrkit.data.jsonl import read_jsonl
from lrkit.data.trail import HOPS, TrailStream, trail_set
from lrkit.errors import DataError, os_sentence
from lrkit.files import sha256
from lrkit.train.recipe import JsonlData, Recipe, Stage, TrailData

KeyT = TypeVar("KeyT")


class Source(Protocol):
    """Draws training samples and names the validation samples."""

    def draw(self, stage: Stage, count: int, rng: np.random.Generator) -> list[Sample]:
        """Up to `count` training samples for one batch, as the stage mixes them."""
        ...

    def validation(self, stage: Stage, count: int) -> dict[int, list[Sample]]:
        """Chain length -> the same up to `count` validation samples every time."""
        ...

    def held_out(self, stage: Stage, count: int) -> list[Sample]:
        """`count` validation samples drawn like the stage's training samples, the same every time."""
        ...

    def num_samples(self, stage: Stage) -> int | None:
        """Training samples that the stage can draw; None where they never end."""
        ...

    def state(self) -> dict[str, Any]:
        """What `load_state` needs to draw on as if never stopped (beside the generator's own state)."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        ...

    def digest(self) -> str:
        """Names the training data: equal digests, equal samples."""
        ...

    def files(self) -> dict[str, str]:
        """Part of the data -> digest of its file, for all that is read from files."""
        ...

    def pictures(self) -> Iterator[Path]:
        """Every picture that is a file."""
        ...


def make_source(recipe: Recipe) -> Source:
    """The source of a recipe.

    Raises:
        DataError: a file is missing or has bad lines, or a stage asks for chain lengths that it lacks.
    """
    if isinstance(recipe.data, TrailData):
        return TrailSource(recipe.data, recipe.seed)
    source = JsonlSource(recipe.data, recipe.seed)
    source.check(recipe.stages)
    return source


class TrailSource:
    """The embedded data set."""

    def __init__(self, data: TrailData, seed: int) -> None:
        self._data = data
        self._stream = TrailStream("train", seed, data.drawing)

    def draw(self, stage: Stage, count: int, rng: np.random.Generator) -> list[Sample]:
        self._stream.rng = rng
        kind = choose(stage.boards or self._data.boards, rng)
        task = choose(stage.tasks or {"trail": 1.0}, rng)
        if task == "read":
            return self._stream.draw(count, kind=kind, task=task)
        lengths = stage.lengths or HOPS[kind]
        weights = dict(zip(lengths, stage.length_weights or (1.0,) * len(lengths), strict=True))
        if stage.batches == "equal":
            return self._stream.draw(count, kind=kind, task=task, hops=choose(weights, rng))
        return [self._stream.draw(1, kind=kind, task=task, hops=choose(weights, rng))[0] for _ in range(count)]

    def validation(self, stage: Stage, count: int) -> dict[int, list[Sample]]:
        kind = _heaviest(stage.boards or self._data.boards)
        lengths = stage.lengths or HOPS[kind]
        drawing = self._data.drawing
        return {n: trail_set(kind, "val", count, hops=(n,), settings=drawing) for n in sorted(set(lengths))}

    def held_out(self, stage: Stage, count: int) -> list[Sample]:
        kind, task = _heaviest(stage.boards or self._data.boards), _heaviest(stage.tasks or {"read": 1.0})
        return TrailStream("val", 0, self._data.drawing).draw(count, kind=kind, task=task)

    def num_samples(self, stage: Stage) -> int | None:
        return None

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        pass

    def digest(self) -> str:
        # Drawn by code from the recipe's seed: the code's version and the drawing settings are the data.
        text = f"trail {__version__} {self._data.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def files(self) -> dict[str, str]:
        return {}

    def pictures(self) -> Iterator[Path]:
        return iter(())


class JsonlSource:
    """Lines of a file, by number of steps; the lines of a length are shuffled again when all have been seen."""

    def __init__(self, data: JsonlData, seed: int) -> None:
        """Reads the files.

        Raises:
            DataError: a file cannot be read or has bad lines; those of both files are named.
        """
        self._data = data
        self._seed = seed
        self._digests: dict[str, str] = {}
        problems: list[str] = []
        read: dict[str, list[Sample]] = {}
        for part, path in data_files(data).items():
            try:
                check_data_file(path)
                self._digests[part] = sha256(path)[0]
                read[part] = [replace(s, info={**s.info, "file": path}) for s in read_jsonl(path)]
            except (DataError, OSError) as error:
                problems.append(str(error) if isinstance(error, DataError) else os_sentence(error, path))
        if problems:
            raise DataError("\n".join(problems))
        self._by_length = _by_length(read["train"])
        self._validation = _by_length(read.get("validation", []))
        self._seen = dict.fromkeys(self._by_length, 0)
        self._orders: dict[tuple[int, int], list[int]] = {}

    def check(self, stages: Sequence[Stage]) -> None:
        """Every stage finds every length it draws.

        Raises:
            DataError: naming all that do not.
        """
        if problems := length_problems(stages, self._data.train, self._by_length):
            raise DataError("\n".join(problems))

    def draw(self, stage: Stage, count: int, rng: np.random.Generator) -> list[Sample]:
        lengths = stage.lengths or tuple(sorted(self._by_length))
        weights = stage.length_weights or tuple(len(self._by_length[length]) for length in lengths)
        weighted = dict(zip(lengths, weights, strict=True))
        if stage.batches == "mixed":
            return [self._next(choose(weighted, rng)) for _ in range(count)]
        length = choose(weighted, rng)
        # A length with few lines gives a small batch rather than one that repeats lines.
        return [self._next(length) for _ in range(min(count, len(self._by_length[length])))]

    def validation(self, stage: Stage, count: int) -> dict[int, list[Sample]]:
        lengths = stage.lengths or tuple(sorted(self._validation))
        return {n: self._validation[n][:count] for n in sorted(set(lengths)) if n in self._validation}

    def held_out(self, stage: Stage, count: int) -> list[Sample]:
        return [sample for samples in self._validation.values() for sample in samples][:count]

    def num_samples(self, stage: Stage) -> int | None:
        return sum(len(self._by_length[length]) for length in stage.lengths or tuple(self._by_length))

    def state(self) -> dict[str, Any]:
        return {"seen": dict(self._seen)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._seen = dict(state["seen"])

    def digest(self) -> str:
        return self._digests["train"]

    def files(self) -> dict[str, str]:
        return dict(self._digests)

    def pictures(self) -> Iterator[Path]:
        for samples in (*self._by_length.values(), *self._validation.values()):
            yield from (image for sample in samples for image in sample.images if isinstance(image, Path))

    def _next(self, length: int) -> Sample:
        lines = self._by_length[length]
        turn, place = divmod(self._seen[length], len(lines))
        self._seen[length] += 1
        if (length, turn) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != length}
            order = np.random.default_rng([self._seed, length, turn]).permutation(len(lines)).tolist()
            self._orders[length, turn] = order
        return lines[self._orders[length, turn][place]]


def data_files(data: JsonlData) -> dict[str, Path]:
    """Part -> file."""
    return {"train": data.train} | ({} if data.validation is None else {"validation": data.validation})


def check_data_file(path: Path) -> None:
    """It is an ordinary file: data are read more than once, which a pipe does not allow.

    Raises:
        DataError: it is not there, or something else.
    """
    try:
        ordinary = path.is_file()
        there = ordinary or path.exists()
    except (OSError, ValueError) as error:
        raise DataError(os_sentence(error, path)) from error
    if not there:
        raise DataError(f"{path}: there is no such data file; check the path")
    if not ordinary:
        seen = "a folder" if path.is_dir() else "a pipe or a device"
        raise DataError(f"{path}: is {seen}; give the path of a JSONL file")


def length_problems(stages: Sequence[Stage], path: Path, lengths: Collection[int]) -> list[str]:
    """The stages that draw chains of lengths which the file at `path` does not have, one sentence each."""
    return [
        f"stage {stage.name} draws chains of {length} steps, but {path} has only lengths {sorted(lengths)}"
        for stage in stages
        for length in stage.lengths
        if length not in lengths
    ]


def choose(weights: Mapping[KeyT, float], rng: np.random.Generator) -> KeyT:
    """A key with probability in proportion to its weight; a single key costs no random number."""
    keys = list(weights)
    if len(keys) == 1:
        return keys[0]
    shares = np.cumsum(np.fromiter(weights.values(), float))
    return keys[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]


def _heaviest(weights: Mapping[KeyT, float]) -> KeyT:
    return max(weights, key=lambda key: weights[key])


def _by_length(samples: Sequence[Sample]) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {}
    for sample in samples:
        found.setdefault(len(sample.steps), []).append(sample)
    return found
