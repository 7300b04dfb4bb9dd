"""report.json: written whole, and read back for a comparison as strictly as a file from a stranger.

Place in the pipeline: report.py -> `write_report` -> report.json -> `read_report` -> pages/comparison.py.
"""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lrkit.errors import DataError, one_line
from lrkit.files import read_json, write_text
from lrkit.profile.report import SCHEMA, Report

_NUMBERS = re.compile(r"\[[-+0-9.eE,\s]+\]")
_HOW = "give a report.json as lrkit profile wrote it"


def write_report(report: Report, file: Path) -> None:
    """Writes JSON, one line per answer.

    Raises:
        FileError: the file cannot be written.
    """
    bare = {**report, "runs": [{**run, "rows": []} for run in report["runs"]]}
    text = json.dumps(bare, indent=1, allow_nan=False)
    # A list of numbers on one line: a depth map would fill pages.
    text = _NUMBERS.sub(lambda found: " ".join(found[0].split()), text)
    for run in report["runs"]:
        rows = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in run["rows"])
        text = text.replace('"rows": []', f'"rows": [\n{rows}\n   ]' if rows else '"rows": [ ]', 1)
    write_text(file, text + "\n")


@contextmanager
def whole(file: Path) -> Generator[None]:
    """Within: what a report of somebody else lacks, or has of another kind, is one sentence.

    Raises:
        DataError: in place of what Python says of it.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{file}: lacks what a report shows ({one_line(error, 100)}); {_HOW}") from error


class _Part(BaseModel):
    """What a comparison reads; a report holds more."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Seconds(_Part):
    total: float = Field(ge=0, le=1e9)


class _Row(_Part):
    sample: str
    repeat: int = Field(ge=0)
    error: str | None
    correct: bool | None
    seconds: _Seconds | dict[str, float]
    ar_steps: float = Field(ge=0, le=1e12)


class _Summary(_Part):
    drift: float | None = Field(ge=-1e9, le=1e9)


class _Run(_Part):
    id: str
    threads: int | None
    summary: _Summary
    rows: list[_Row]


class _Provenance(_Part):
    lrkit: str
    git_commit: str | None
    python: str
    cpu: str | None
    platform: str
    num_cpus: int
    packages: dict[str, str | None]


class _Report(_Part):
    kind: Literal["profile"]
    runs: list[_Run]
    provenance: _Provenance


def report_path(path: Path) -> Path:
    """The report of a folder that `lrkit profile` wrote, or the file itself."""
    return path / "report.json" if path.is_dir() else path


def read_report(file: Path) -> Report:
    """A report that `write_report` wrote; a folder stands for its report.json.

    Raises:
        DataError: no such file, no report, one of a later schema, or one that lacks what a comparison reads.
    """
    file = report_path(file)
    found = read_json(file, DataError)
    if found.get("kind") != "profile":
        raise DataError(f"{file}: is no report of lrkit profile; give its report.json")
    schema = found.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise DataError(f"{file}: its schema is no number; {_HOW}")
    if schema > SCHEMA:
        raise DataError(f"{file}: has schema {schema}, this lrkit reads up to {SCHEMA}; update lrkit")
    try:
        _Report.model_validate(found)
    except ValidationError as error:
        first: Any = error.errors(include_url=False)[0]
        place = one_line(".".join(map(str, first["loc"])), 80)
        raise DataError(f"{file}: {place}: {one_line(first['msg'], 100).lower()}; {_HOW}") from error
    wrong = [run["id"] for run in found["runs"] for row in run["rows"] if _incomplete(row)]
    if wrong:
        raise DataError(f"{file}: run {one_line(wrong[0], 60)} has an answer without its time; {_HOW}")
    return found


def _incomplete(row: dict[str, Any]) -> bool:
    """A failed answer has no times."""
    return row["error"] is None and "total" not in row["seconds"]
