"""Folders that tests publish: the shipped model over a base of the hub, and what a training leaves beside it."""

import json
import shutil
from pathlib import Path
from typing import Any

from lrkit.resources import resolve_checkpoint

STRAY = {
    "state.pt": "training state, a pickle",
    "heartbeat.json": "of a training run",
    "metrics.jsonl": "of a training run",
    "events.out.tfevents.1.host": "TensorBoard",
    "pytorch_model.bin": "a pickle",
    "optimizer.pth": "a pickle",
    "notes.txt": "not part of it",
}
"""File -> why it stays behind."""


def adapter(folder: Path, base: str = "owner/base") -> Path:
    """The shipped latent model, as one that was trained from a model of the hub."""
    shutil.copytree(resolve_checkpoint("tiny"), folder)
    change(folder / "reasoner.json", base=base)
    change(folder / "adapter_config.json", base_model_name_or_path=base)
    return folder


def with_strays(folder: Path) -> Path:
    """The same folder, with files that are not published."""
    for name in STRAY:
        (folder / name).write_text("secret")
    return folder


def change(file: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
