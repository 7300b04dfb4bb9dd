"""What a vocabulary of published size takes in a program: embedding and head, tied or not, quantized or not. The table
in docs/values.md is held against programs of a narrow model with the real 151,936 rows.

Once a tied head that stayed float in an int4 program was stored a second time beside its own embedding.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lrkit.config import load_config
from lrkit.export.bundle import _Export  # pyright: ignore[reportPrivateUsage]
from lrkit.export.seen_samples import SeenSamples
from lrkit.export.subject import CheckpointSubject
from lrkit.export.targets.target import Target, limits_of
from lrkit.resources import find_target
from tests.published import VOCABULARY, write_published

WIDTH = 128
PAGE = Path(__file__).resolve().parents[2] / "docs" / "values.md"
ROW = re.compile(r"^\| (tied|untied) \| `([^|]+)` \| ([\d.]+) \| ([\d.]+|-) \|$", re.MULTILINE)
ROWS: list[tuple[str, ...]] = [found.groups() for found in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
SHOWN_WIDTH = 1536
"""Of the table: Qwen2-VL-2B's."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home, made = tmp_path_factory.mktemp("published"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_published(home / name, tied=name == "tied", layers=1, width=WIDTH)
        return made[name]

    return get


def bytes_of(checkpoint: Path, words: str, folder: Path, dialect: str) -> tuple[dict[str, int], int]:
    """(weight bytes by part, bytes on disk) of the program for direct answers."""
    integers = words not in ("precision: fp32", "precision: fp16")
    base = find_target("cpu-int4" if integers else "cpu-fp32")
    changes = [word.replace(": ", "=") for word in words.split(", ")] if words != "precision: int4" else []
    target = load_config(Target, base, [*changes, f"dialect={dialect}"])
    export: Any = _Export(CheckpointSubject(checkpoint), folder, target, "program", [], lambda *_: None)
    limits = limits_of(target, 0, export.processor.geometry).model_copy(update={"max_latent_steps": 0})
    export.seen = SeenSamples(export.processor, [], limits)
    entry = export._program("direct", export.subject.origins(False)["direct"], limits)
    return entry.bytes_by_part, sum(file.stat().st_size for file in folder.iterdir())


def expected(words: str, part: str, width: int) -> float:
    """Bytes of 151,936 rows: values, and a float32 scale for each row (embedding) or each 128 weights (head)."""
    kinds = dict(pair.removeprefix("int4.").split(": ") for pair in words.split(", "))
    kind = kinds.get("precision", "int4")
    if kind == "int4":
        kind = kinds.get(part, {"embedding": "int8", "head": "int4"}[part])
    sizes = {"fp32": 4.0, "float": 4.0, "fp16": 2.0, "int8": 1.0, "int4": 0.5}
    scale = 0.0 if kind in ("fp32", "fp16", "float") else 4 / (width if part == "embedding" else 128)
    return VOCABULARY * width * (sizes[kind] + scale)


def check(row: tuple[str, ...], dialect: str, checkpoints: Any, folder: Path) -> None:
    tied, words, embedding, head = row
    found, on_disk = bytes_of(checkpoints(tied), words, folder, dialect)
    want = {"embedding": embedding, "head": head}
    for part, shown in want.items():
        if shown == "-":
            assert part not in found, "one matrix serves both ends"
            continue
        assert found[part] == expected(words, part, WIDTH)
        assert float(shown) == pytest.approx(expected(words, part, SHOWN_WIDTH) / 1e6, abs=0.06)
    assert set(found) - {"head"} == {"embedding", "layers", "vision"}
    assert sum(found.values()) < on_disk < 1.03 * sum(found.values()) + 1e6


def is_default(row: tuple[str, ...]) -> bool:
    return (row[0], row[1]) in [("tied", "precision: int4"), ("tied", "int4.head: float, int4.embedding: float")]


@pytest.mark.parametrize("row", [*filter(is_default, ROWS)], ids=" ".join)
def test_the_table_says_what_programs_hold(row: tuple[str, ...], checkpoints: Any, tmp_path: Path) -> None:
    check(row, "ort", checkpoints, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["ort", "standard"])
@pytest.mark.parametrize("row", ROWS, ids=partial(str.join, " "))
def test_every_row_in_both_dialects(row: tuple[str, ...], dialect: str, checkpoints: Any, tmp_path: Path) -> None:
    assert len(ROWS) == 14
    check(row, dialect, checkpoints, tmp_path)
