"""Real photographs of the kinds that people have: two pictures that scikit-learn ships, saved in many ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.pictures import ORIENTATION

QUESTIONS = {
    "china": ("What stands there?", ["There are trees.", "Between them stands a roof of tiles."], "a temple"),
    "flower": ("What is in front?", ["The ground is green.", "Petals stand around a centre."], "a flower"),
}


def photographs() -> dict[str, Image.Image]:
    """Both, in RGB, 640 x 427."""
    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in QUESTIONS}


def _turned(picture: Image.Image, path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture.rotate(90, expand=True).save(path, quality=90, exif=exif)


def _grey16(picture: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)


KINDS: dict[str, Callable[[Image.Image, Path], Any]] = {
    "plain.jpg": lambda picture, path: picture.save(path, quality=85),
    "turned.jpg": _turned,
    "cmyk.jpg": lambda picture, path: picture.convert("CMYK").save(path, quality=90),
    "grey16.png": _grey16,
    "palette.png": lambda picture, path: picture.convert("P", palette=Image.Palette.ADAPTIVE).save(path),
    "web.webp": lambda picture, path: picture.save(path, quality=80),
    "grey.png": lambda picture, path: picture.convert("L").save(path),
    "progressive.jpg": lambda picture, path: picture.save(path, progressive=True, quality=75),
    "huge.jpg": lambda picture, path: picture.resize((4096, 3072)).save(path, quality=70),
}
"""Ending of a file's name -> what writes it."""


def write_photographs(folder: Path) -> list[str]:
    """Every photograph in every kind; gives a data line for each, and one about two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for name, picture in photographs().items():
        question, steps, answer = QUESTIONS[name]
        for ending, write in KINDS.items():
            file = f"{name}-{ending}"
            write(picture, folder / file)
            lines.append({"image": file, "question": question, "steps": steps, "answer": answer, "id": file})
    both = [f"{name}-plain.jpg" for name in QUESTIONS]
    lines.append({"image": both, "question": "Which has a roof?", "steps": [], "answer": "the first", "id": "both"})
    return [json.dumps(line) + "\n" for line in lines]
