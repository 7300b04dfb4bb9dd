"""Data of the user's own: a JSONL file with one sample per line. Imports no torch.

    {"image": "a.png", "question": "What is it?", "steps": ["It has wings."], "answer": "a bird", "id": "7"}

`image` is a path or a list of paths, relative to the file. Without it the question has no picture. `id` is optional.
jsonl_line.py says what a line must hold. A bad line is named and never ends the scan. A line is read only up to
`MAX_LINE_BYTES`.

Place in the pipeline: file -> `read_jsonl` -> samples -> `collate`; `lrkit validate` -> `check_jsonl`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from lrkit.contract.sample import Sample
from lrkit.data.jsonl_line import parse_line
from lrkit.errors import DataError, UserError, clean, one_line, os_sentence
from lrkit.families.table import DEFAULT, geometry_of
from lrkit.files import NotOrdinaryError, open_ordinary
from lrkit.pictures.load import load_image
from lrkit.runtime.encode.processor import Processor
from lrkit.summary import Summary, summarize

MAX_PROBLEMS = 20
"""Bad lines that are listed; of the others the number is given."""
MAX_LINE_BYTES = 8 << 20
"""Longest line that is read."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
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
            self.problems.append(f"{clean(str(self.path))}:{line}: {one_line(reason, 1000)}")

    def raise_if_bad(self) -> None:
        """Raise all problems at once.

        Raises:
            DataError: a line is bad, or the file holds no sample.
        """
        if self.num_bad_lines:
            hidden = self.num_bad_lines - len(self.problems)
            more = [f"{clean(str(self.path))}: and {hidden} more bad lines"] if hidden else []
            raise DataError("\n".join([*self.problems, *more]))
        if not self.samples:
            raise DataError(f"{clean(str(self.path))}: holds no sample; write one JSON object per line")


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
    measure(scan, _good_lines(scan, advance), processor)
    return scan


def measure(scan: JsonlScan, numbered: Iterable[tuple[int, Sample]], processor: Processor | None) -> None:
    """Opens the pictures of samples, each with its line, and counts as `check_jsonl` says; all goes into `scan`."""
    measured: dict[str, list[int]] = {}
    for line, sample in numbered:
        try:
            counts = _measure_words(sample) if processor is None else _measure_tokens(sample, processor)
        except UserError as error:
            scan.add_problem(line, str(error))
            continue
        scan.samples.append(sample)
        for name, count in {"images": len(sample.images), "steps": len(sample.steps), **counts}.items():
            measured.setdefault(name, []).append(count)
    scan.lengths = {name: summarize(values) for name, values in measured.items()}


def _good_lines(scan: JsonlScan, advance: Advance | None) -> Iterator[tuple[int, Sample]]:
    """(line number, sample) of each good line; bad ones go into `scan`."""
    folder, first_lines = scan.path.parent, dict[str, int]()
    for number, raw, size in numbered_lines(scan.path):
        try:
            sample = line_sample(raw, size, folder, number)
            first = number if sample is None else first_lines.setdefault(sample.id, number)
            if sample is not None and first != number:
                raise DataError(
                    f"id {one_line(repr(sample.id), 60)} was used in line {first}; give each sample its own"
                )
        except DataError as error:
            scan.add_problem(number, str(error))
        else:
            if sample is not None:
                yield number, sample
        if advance is not None:
            advance(size)


def line_sample(raw: bytes, size: int, folder: Path, number: int, answered: bool = True) -> Sample | None:
    """The sample of a line of `size` bytes; None for a blank one. Raises as `parse_line`."""
    if size > MAX_LINE_BYTES:
        raise DataError(f"has {size} bytes; a line may have {MAX_LINE_BYTES >> 20} MiB, so save pictures apart")
    return parse_line(raw, folder, number, answered)


def numbered_lines(path: Path, start: int = 0, number: int = 1) -> Iterator[tuple[int, bytes, int]]:
    """(number, line, its bytes) from the byte `start` on, where line `number` begins; of a line above `MAX_LINE_BYTES`
    the content is passed over.

    Raises:
        DataError: the file cannot be read, is no ordinary file, or is in UTF-16.
    """
    named = clean(str(path))
    try:
        with open_ordinary(path) as file:
            if file.read(2) in _UTF16_MARKS:
                raise DataError(f"{named}: is in UTF-16; save the file as UTF-8")
            file.seek(start)
            while line := file.readline(MAX_LINE_BYTES + 1):
                yield number, line, len(line) + (_pass_over(file) if _is_cut(line) else 0)
                number += 1
    except NotOrdinaryError as error:
        raise DataError(f"{named}: is {error}; give the path of a JSONL file") from error
    except OSError as error:
        raise DataError(os_sentence(error, path)) from error
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{named}: is no path of a file; check how it was made") from error


def _is_cut(line: bytes) -> bool:
    return len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")


def _pass_over(file: BinaryIO) -> int:
    """Reads to the end of the line, in pieces, and returns its bytes."""
    size = 0
    while piece := file.readline(1 << 20):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def _measure_words(sample: Sample) -> dict[str, int]:
    # Which model will see the pictures is not known: they are held against the default family's rule.
    geometry = geometry_of(DEFAULT)
    for image in sample.images:
        geometry.check_size(*load_image(image).size)
    spoken = sum(len(text.split()) for text in (*sample.steps, sample.answer))
    return {"question words": len(sample.question.split()), "spoken words": spoken}


def _measure_tokens(sample: Sample, processor: Processor) -> dict[str, int]:
    prompt = processor.encode_prompt(sample.images, sample.question)
    visual = prompt.ids.count(processor.image_id)
    speech = processor.encode_speech(sample.steps, sample.answer)
    return {"prompt tokens": len(prompt.ids), "visual tokens": visual, "spoken tokens": len(speech)}
