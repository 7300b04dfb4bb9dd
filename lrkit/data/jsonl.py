"""Data of the user's own: a JSONL file with one sample per line. Imports no torch.

    {"image": "a.png", "question": "What is it?", "steps": ["It has wings."], "answer": "a bird", "id": "7"}

`image` is a path or a list of paths, relative to the file; left out or empty, the question has no picture. `id` may be
left out.
Place in the pipeline: file -> `read_jsonl` -> samples -> `collate`; `lrkit validate` -> `check_jsonl`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrkit.data.sample import Sample
from lrkit.errors import DataError, UserError, did_you_mean
from lrkit.runtime.pictures import load_image
from lrkit.runtime.processor import Processor
from lrkit.runtime.summary import Summary, summarize

MAX_PROBLEMS = 20
"""Bad lines that are listed; of the others the number is given."""

_KEYS = ("image", "question", "steps", "answer", "id")
Advance = Callable[[int], None]
"""Told how many bytes of the file were done."""


@dataclass
class JsonlScan:
    """What a file holds: its good samples, and what is wrong with the other lines."""

    path: Path
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One text per bad line, "file:line: reason; reason", at most `MAX_PROBLEMS`."""
    num_bad_lines: int = 0
    """All bad lines, listed or not."""
    lengths: dict[str, Summary] = field(default_factory=dict)
    """Filled by `check_jsonl`: statistics by what was counted."""

    def add_problem(self, line: int, reason: str) -> None:
        """Count a bad line, and list it while there is room."""
        self.num_bad_lines += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{self.path}:{line}: {reason}")

    def raise_if_bad(self) -> None:
        """Raise all problems at once.

        Raises:
            DataError: a line is bad, or the file holds no sample.
        """
        if self.num_bad_lines:
            hidden = self.num_bad_lines - len(self.problems)
            more = [f"{self.path}: and {hidden} more bad lines"] if hidden else []
            raise DataError("\n".join([*self.problems, *more]))
        if not self.samples:
            raise DataError(f"{self.path}: holds no sample; write one JSON object per line")


def read_jsonl(path: Path, advance: Advance | None = None) -> list[Sample]:
    """All samples of a file; pictures are looked for but not opened.

    Raises:
        DataError: the file cannot be read, holds no sample, or has bad lines, which are all named.
    """
    scan = JsonlScan(path)
    scan.samples = [sample for _, sample in _good_lines(scan, advance)]
    scan.raise_if_bad()
    return scan.samples


def check_jsonl(path: Path, processor: Processor | None = None, advance: Advance | None = None) -> JsonlScan:
    """Find what is wrong without training: also opens every picture and, with `processor`, encodes every text.

    The scan's `lengths` count steps and pictures per sample, and prompt, visual and spoken tokens with `processor`,
    words without.

    Raises:
        DataError: the file cannot be read.
    """
    scan = JsonlScan(path)
    measured: dict[str, list[int]] = {}
    for line, sample in _good_lines(scan, advance):
        try:
            counts = _measure_words(sample) if processor is None else _measure_tokens(sample, processor)
        except UserError as error:
            scan.add_problem(line, str(error))
            continue
        scan.samples.append(sample)
        for name, count in {"images": len(sample.images), "steps": len(sample.steps), **counts}.items():
            measured.setdefault(name, []).append(count)
    scan.lengths = {name: summarize(values) for name, values in measured.items()}
    return scan


def _good_lines(scan: JsonlScan, advance: Advance | None) -> Iterator[tuple[int, Sample]]:
    """(line number, sample) of each good line; bad ones go into `scan`."""
    path, first_lines = scan.path, dict[str, int]()
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    sample = _parse(raw, path, number)
                    first = number if sample is None else first_lines.setdefault(sample.id, number)
                    if sample is not None and first != number:
                        raise DataError(f"id {sample.id!r} was used in line {first}; give each sample its own")
                except DataError as error:
                    scan.add_problem(number, str(error))
                else:
                    if sample is not None:
                        yield number, sample
                if advance is not None:
                    advance(len(raw))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a JSONL file") from error


def _parse(raw: bytes, path: Path, number: int) -> Sample | None:
    """The sample of one line, None for a blank one.

    Raises:
        DataError: with every reason why the line cannot be used.
    """
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    if not text:
        return None
    try:
        values = json.loads(text, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        raise DataError(
            f"is not valid JSON ({error.msg} at column {error.colno}); write one object per line"
        ) from error
    except RecursionError as error:
        raise DataError("is nested too deeply; write one flat object per line") from error
    if not isinstance(values, dict):
        raise DataError(f"holds {_kind(values)}; write an object with {', '.join(_KEYS)}")
    problems = list(_problems(values, path.parent))
    if problems:
        raise DataError("; ".join(problems))
    return Sample(
        images=tuple(path.parent / name for name in _image_names(values)),
        question=values["question"],
        steps=tuple(values["steps"]),
        answer=values["answer"],
        id=values.get("id", f"line {number}"),
        info={"line": number},
    )


def _problems(values: dict[str, Any], folder: Path) -> Iterator[str]:
    for key in values:
        if key not in _KEYS:
            yield f"unknown key {key!r}; allowed: {', '.join(_KEYS)}{did_you_mean(key, _KEYS)}"
    for key in ("question", "answer"):
        yield from _text_problems(values.get(key), key, missing=key not in values)
    if "id" in values:
        yield from _text_problems(values["id"], "id", missing=False)
    steps = values.get("steps")
    if not isinstance(steps, list):
        seen = f"is {_kind(steps)}" if "steps" in values else "is missing"
        yield f"steps {seen}; give a list of texts, [] for none"
    else:
        for index, step in enumerate(steps):
            yield from _text_problems(step, f"steps[{index}]", missing=False)
    yield from _image_problems(values, folder)


def _text_problems(value: Any, name: str, missing: bool) -> Iterator[str]:
    if missing:
        yield f"{name} is missing; give a text"
    elif not isinstance(value, str):
        yield f"{name} is {_kind(value)}; give a text in quotes"
    elif not value.strip():
        yield f"{name} is empty; give a text"


def _image_problems(values: dict[str, Any], folder: Path) -> Iterator[str]:
    names = _image_names(values)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        yield f"image is {_kind(values['image'])}; give a path or a list of paths"
        return
    for name in names:
        if name.startswith(("http://", "https://", "data:")):
            yield f"image {name[:60]!r} is no path; save the picture and give its path relative to the data file"
        elif not (folder / name).is_file():
            yield f"image {name!r} is not there; paths are relative to {folder or Path()}"


def _image_names(values: dict[str, Any]) -> Any:
    """The value of `image` as a list where it is a path or left out; otherwise as it is."""
    names = values.get("image", [])
    return [names] if isinstance(names, str) else names


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise DataError(f"the key {repeated[0]!r} is given {counts[repeated[0]]} times; keep one")
    return dict(pairs)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names[type(value)]


def _measure_words(sample: Sample) -> dict[str, int]:
    for image in sample.images:
        load_image(image)
    spoken = sum(len(text.split()) for text in (*sample.steps, sample.answer))
    return {"question words": len(sample.question.split()), "spoken words": spoken}


def _measure_tokens(sample: Sample, processor: Processor) -> dict[str, int]:
    prompt = processor.encode_prompt(sample.images, sample.question)
    visual = prompt.ids.count(processor.image_id)
    speech = processor.encode_speech(sample.steps, sample.answer)
    return {"prompt tokens": len(prompt.ids), "visual tokens": visual, "spoken tokens": len(speech)}
