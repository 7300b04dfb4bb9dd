"""The long table of an analysis: one row for each figure; written as Parquet or as JSON lines, and read back.

    updates  stage  sample  group  layer  kind    measure        value
    100      two    3       hard   2      visual  gradient_mean  0.0031

Place in the pipeline: sample_figures.py makes rows -> analysis_set.py -> `write_rows` -> analysis_summary.py.
"""

import json
import math
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lrkit.errors import DataError
from lrkit.files import parse_json, read_text, replacing, write_text

_MOST_BYTES = 1 << 30


class Row(NamedTuple):
    """One figure."""

    updates: int
    """Updates of the run so far."""
    stage: str
    """Of the curriculum."""
    sample: int | None
    """Number in the fixed set; null: of the whole set."""
    group: str
    """easy or hard; empty: neither."""
    layer: int | None
    """The layer that a hidden state enters, from 0; the number of layers stands for the final norm. Of a matrix or a
    contribution: the layer itself. Null: of the whole model."""
    kind: str
    """visual, text, replayed, latent or spoken: tokens; q, k, v or o: matrices; model."""
    measure: str
    """See docs/analyze.md."""
    value: float | None
    """Null where it is no number."""
    token: int | None = None
    """Place of a projected token among those of its kind and sample."""


def finite(value: float) -> float | None:
    """Six digits; None for NaN and infinity, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def write_lines(rows: Iterable[Row], file: Path) -> None:
    """One JSON object a line, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    write_text(file, "".join(json.dumps(_bare(row), allow_nan=False) + "\n" for row in rows))


def write_rows(rows: Sequence[Row], folder: Path) -> Path:
    """rows.parquet where pyarrow is installed, else rows.jsonl; gives the file.

    Raises:
        FileError: it cannot be written.
    """
    if find_spec("pyarrow") is None:
        write_lines(rows, folder / "rows.jsonl")
        return folder / "rows.jsonl"
    import pyarrow  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingImports]

    types: Any = {"value": pyarrow.float64()} | dict.fromkeys(
        ("updates", "sample", "layer", "token"), pyarrow.int64()
    ) | dict.fromkeys(("stage", "group", "kind", "measure"), pyarrow.string())  # fmt: skip
    columns = {name: pyarrow.array([getattr(row, name) for row in rows], types[name]) for name in Row._fields}
    with replacing(folder / "rows.parquet") as path:
        parquet.write_table(pyarrow.table(columns), str(path))
    return folder / "rows.parquet"


def read_lines(file: Path) -> list[Row]:
    """What `write_lines` wrote.

    Raises:
        DataError: it cannot be read, or a line is no row.
    """
    rows: list[Row] = []
    for number, line in enumerate(read_text(file, DataError, max_bytes=_MOST_BYTES).splitlines(), 1):
        rows.append(_row(parse_json(line, f"{file}:{number}", DataError), f"{file}:{number}"))
    return rows


def _bare(row: Row) -> dict[str, Any]:
    values = row._asdict()
    if row.token is None:
        del values["token"]
    return values


_NUMBERS = {"updates", "sample", "layer", "token", "value"}
_MAY_BE_NULL = {"sample", "layer", "token", "value"}


def _row(values: dict[str, Any], where: str) -> Row:
    for name in Row._fields:
        value = values.get(name)
        known = name in values or name == "token"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        right = number or (value is None and name in _MAY_BE_NULL) if name in _NUMBERS else isinstance(value, str)
        if name in _NUMBERS - {"value"} and number and (not isinstance(value, int) or value < 0):
            right = False
        if not known or not right:
            raise DataError(f"{where}: {name} is missing or of another kind; give what `lrkit train` wrote")
    return Row(*(values.get(name) for name in Row._fields))  # pyright: ignore[reportArgumentType]
