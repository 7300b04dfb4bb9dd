"""Files of many questions for tests: JSONL and parquet beside their pictures, and what a process of its own makes of
them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

QUESTIONS = ("Take {} hops. Which room are you in? Start in room {}",)
COUNT = 23
"""Lines of a file: no multiple of a shard."""
SHARD = 4
"""Lines of a shard."""


def values(count: int = COUNT) -> list[dict[str, Any]]:
    """Lines with answers, about two pictures."""
    return [
        {
            "image": f"{number % 2}.png",
            "question": QUESTIONS[0].format(1 + number % 3, number % 8),
            "steps": [],
            "answer": str(number % 8),
            "id": f"q{number}",
        }
        for number in range(count)
    ]


def write_lines(folder: Path, lines: Sequence[Mapping[str, Any]] | None = None, name: str = "lines.jsonl") -> Path:
    """A JSONL file, with a blank line behind the third, and its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        drawn = Image.new("RGB", (80, 32), (40 * number, 90, 200))
        drawn.paste((250, 250, 10), (10, 5, 30 + 20 * number, 25))
        drawn.save(folder / f"{number}.png")
    texts = [json.dumps(line) for line in (values() if lines is None else lines)]
    (folder / name).write_text("".join(f"{text}\n" for text in [*texts[:3], "", *texts[3:]]), encoding="utf-8")
    return folder / name


def rows(file: Path) -> list[dict[str, Any]]:
    """Of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def started(*words: object, **environment: str) -> "subprocess.Popen[str]":
    """`lrkit` in a process of its own, one thread each; what it says on standard error can be read."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lrkit", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """(exit code, or minus the signal; what it said on standard error)."""
    said = process.communicate()[1]
    return process.returncode, said


KILLED = -signal.SIGKILL
