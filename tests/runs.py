"""Small training runs: what they are made of, and what they leave, for comparisons."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from lrkit.train.metrics import read_metrics

PACE = {"seconds", "tokens_per_second", "waiting_share"}
"""What the clock decides of a record."""


def curve(folder: Path) -> list[dict[str, Any]]:
    """All records of a run without the clock."""
    return [{key: value for key, value in record.items() if key not in PACE} for record in read_metrics(folder)]


def write_lines(folder: Path) -> Path:
    """Writes six samples with pictures into `folder`; the path of the lines."""
    lines: list[dict[str, Any]] = []
    for number in range(6):
        Image.new("RGB", (32, 16), (40 * number, 0, 0)).save(folder / f"{number}.png")
        steps = ["go on to"] * (number % 2)
        lines.append({"image": f"{number}.png", "question": "Which room ?", "steps": steps, "answer": str(number)})
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "lines.jsonl"


def two_stage_values(lines: Path, init: str = "tiny/base") -> dict[str, Any]:
    """A recipe of five updates."""
    return {
        "name": "two",
        "init": init,
        "model": {"lora": {"rank": 2, "alpha": 2.0, "dropout": 0.1}, "replay": {"num_tokens": 1}},
        "data": {"kind": "jsonl", "train": str(lines)},
        "batch_size": 1,
        "save_every": 1,
        "log_every": 1,
        "eval": {"samples": 0},
        "stages": [{"name": "say", "updates": 3}, {"name": "think", "latent_steps": "all", "updates": 2}],
    }


def two_stages(folder: Path, **more: Any) -> Path:
    """Writes data and a recipe of five updates over the shipped base into `folder`; the recipe's path."""
    file = folder / "two.yaml"
    file.write_text(json.dumps(two_stage_values(write_lines(folder)) | more))  # which is YAML too
    return file
