"""Commands of the pages are run: those of docs/own-data.md in order, and the one behind the picture of the README."""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lrkit.cli.main import main
from tests.photographs import write_photographs
from tests.pictures import write_pictures
from tests.published import write_published

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "own-data.md"
SHORT = ["--max-new-tokens", "4"]
SMALLER = {
    "eval": ["--samples", "2", "--latency-samples", "1", *SHORT],
    "ask": SHORT,
    # Random weights know no right answer.
    "export": ["--samples", "2", "--allow-unproven", "limits.max_new_tokens=4"],
    "profile": ["--suite", "smoke", "max_new_tokens=4", "repeats=1", "phase_samples=1"],
}
"""What makes a command of the page small: verb -> further arguments."""
VALUES = {
    r"init: .*": "init: Qwen2-VL-2B-Instruct",
    r"train: data/train.jsonl": "train: data.jsonl\n  validation: held-out.jsonl",
    r"epochs: 4": "updates: 1",
    r"batch_size: 8\naccumulate: 16": "batch_size: 2\naccumulate: 1",
    r"halting: adaptive": "halting: fixed",
    r"rank: 64": "rank: 4",
    r"samples: 100, batch_size: 8, max_new_tokens: 512": "samples: 2, batch_size: 2, max_new_tokens: 4",
    r"precision: bfloat16": "precision: bfloat16\nmax_pixels: 50176",
}
"""What a user who opens mine.yaml changes: pattern -> value."""


def commands(page: Path = PAGE) -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def write_home(home: Path) -> None:
    """What the page takes for granted: a model, and data in two files beside their pictures."""
    write_published(home / "Qwen2-VL-2B-Instruct", shard="8MB")
    photographed = write_photographs(home)
    drawn = write_pictures(home).read_text(encoding="utf-8").replace("chart0.png", "cups.png").splitlines(keepends=True)
    (home / "chart0.png").rename(home / "cups.png")
    # What is measured, exported with and profiled begins with photographs: a turned one, and one in 16 bits.
    first = [line for line in photographed if "flower-turned" in line or "china-grey16" in line]
    held_out = [*first, *drawn[30:]]
    (home / "held-out.jsonl").write_text("".join(held_out), encoding="utf-8")
    lines = [line for line in photographed if line not in first] + drawn[:30]
    (home / "data.jsonl").write_text("".join(lines), encoding="utf-8")


def edit(recipe: Path) -> None:
    """As the page says, and to a small size."""
    text = recipe.read_text(encoding="utf-8")
    for pattern, value in VALUES.items():
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    recipe.write_text(text, encoding="utf-8")


@pytest.mark.long
def test_every_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_home(tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = [words[1] for words in commands() if run(words)]
    assert len(ran) >= 15
    assert {"validate", "eval", "cp", "train", "ask", "export", "profile"} <= set(ran)
    assert json.loads(Path("after.json").read_text())["modes"]["latent"]["samples"] == 2
    assert Path("trace.png").is_file() and Path("runs/profile/report.json").is_file()


PROBES = {
    "probe": ["--samples", "8", "--max-new-tokens", "3", "--modes", "patched"],
    "export": ["--samples", "2", "--allow-unproven"],
    "train": [
        "eval.samples=0", "batch_size=2", "analyze.every=1", "analyze.samples=2",
        *(f"stages.{stage}.updates={int(stage in (2, 5))}" for stage in range(6)),
    ],
    "analyze": ["--samples", "2"],
}  # fmt: skip
"""The same for the pages of probe and analyze."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "made"),
    [
        ("probe.md", ["runs/probe/report.html", "probe.json", "tiny-step/bundle.json"]),
        ("analyze.md", ["watched/report.html", "stages/report.json", "tiny-analysis/report.html"]),
    ],
)
def test_the_commands_of_other_pages_run(
    page: str, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(ROOT / "docs" / page)
    assert len(found) >= 3
    for words in found:
        run(words, PROBES)
    assert [name for name in made if not Path(name).is_file()] == []


def run(words: list[str], smaller: Mapping[str, list[str]] = SMALLER) -> bool:
    program, verb, *arguments = words
    assert program == "lrkit"
    with pytest.raises(SystemExit) as left:
        main([verb, *arguments, *smaller.get(verb, [])])
    assert left.value.code == 0, words
    if verb == "cp":
        edit(Path("mine.yaml"))
    return True


def test_the_picture_of_the_quick_start_is_what_its_command_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room by room, not letter by letter: another version of Pillow may draw its font otherwise."""
    monkeypatch.chdir(ROOT)
    command = re.search(r"Made by `lrkit (ask [^`]+)`", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert command is not None
    drawn = tmp_path / "trace.png"
    words = [str(drawn) if word == "docs/images/trace.png" else word for word in shlex.split(command[1])]
    assert str(drawn) in words
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    with Image.open(drawn) as new, Image.open(ROOT / "docs/images/trace.png") as committed:
        assert new.size == committed.size
        below = (0, new.height // 2, *new.size)
        difference = np.subtract(new.convert("RGB").crop(below), committed.convert("RGB").crop(below), dtype=float)
    assert np.abs(difference).mean() < 1
