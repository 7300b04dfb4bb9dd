"""Forty samples with pictures as people have them: photographs, charts, odd modes, formats, sizes and orientations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

ORIENTATION = 0x0112


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """Soft shapes over noise: about as hard to compress and to resize as a photograph."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y = (int(generator.integers(0, side)) for side in size)
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        draw.ellipse((x, y, x + size[0] // 5, y + size[1] // 5), fill=colour)
    return picture.filter(ImageFilter.SMOOTH)


def chart(seed: int, size: tuple[int, int] = (240, 160)) -> Image.Image:
    """Bars on white."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for bar, height in enumerate(generator.integers(10, size[1] - 20, 5)):
        draw.rectangle((20 + 40 * bar, size[1] - 10 - int(height), 45 + 40 * bar, size[1] - 10), fill="navy")
    return picture


def _with_orientation(picture: Image.Image, value: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return {"exif": exif}


def _odd() -> dict[str, Callable[[Path], None]]:
    """File name -> what writes it."""
    base = photograph(7, (200, 150))
    grey16 = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    see_through = base.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(base.size))
    frames = [Image.new("P", (60, 60), index) for index in range(4)]
    palette = base.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    return {
        "rgba.png": see_through.save,
        "grey.png": base.convert("L").save,
        "grey-alpha.png": base.convert("LA").save,
        "grey16.png": grey16.save,
        "one-bit.png": base.convert("1").save,
        "palette.gif": palette.save,
        "palette-see-through.png": lambda path: palette.save(path, transparency=0),
        "cmyk.jpg": base.convert("CMYK").save,
        "progressive.jpg": lambda path: base.save(path, progressive=True),
        "animated.gif": lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]),
        "picture.webp": base.save,
        "picture.bmp": base.save,
        "picture.tiff": lambda path: base.save(path, compression="tiff_lzw"),
        "one-pixel.png": Image.new("RGB", (1, 1), "red").save,
        "wide.png": photograph(8, (600, 12)).save,
        "tall.png": photograph(9, (10, 500)).save,
        "named-jpg.jpg": lambda path: base.save(path, format="PNG"),
        "phone.jpg": lambda path: photograph(10, (4000, 3000)).save(path, quality=80),
        "Bild ä 日本 [v2].png": base.save,
    }


def write_pictures(folder: Path) -> Path:
    """Pictures and the JSONL file that asks about them: 40 lines, among them one of two pictures and one of none."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []

    def add(image: str | list[str], question: str, steps: list[str], answer: str) -> None:
        lines.append({"image": image, "question": question, "steps": steps, "answer": answer, "id": f"s{len(lines)}"})

    for index in range(6):
        photograph(index, (160 + 20 * index, 120)).save(folder / f"photo{index}.jpg", quality=85)
        steps = [f"First look at part {step + 1} of {index + 1}." for step in range(index + 1)]
        add(f"photo{index}.jpg", "How many circles are there?", steps, "4")
    for index in range(5):
        chart(index).save(folder / f"chart{index}.png")
        add(f"chart{index}.png", "Which bar is highest?", ["A is low.", "B is higher.", "So 这是 B — naïve 🚀."], "B")
    for value in range(1, 9):
        picture = photograph(20 + value, (120, 90))
        picture.save(folder / f"turned{value}.jpg", **_with_orientation(picture, value))
        add(f"turned{value}.jpg", "Is it upright?", ["The sky is up."], "yes")
    for name, write in _odd().items():
        write(folder / name)
        add(name, "هل ترى شيئا؟ 这是什么?", ["It is seen whole.", "It is one thing."], "one thing")
    add(["photo0.jpg", "photo1.jpg"], "Which is brighter?", ["Compare both."], "the first")
    add([], "What is 17 * 3?", ["10*3=30", "7*3=21", "30+21=51"], "51")
    file = folder / "samples.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file
