"""How fast batches of large photographs are made, by number of workers, with and without kept pictures.

    python -m benchmarks.loading [--pictures 12] [--megapixels 12] [--workers 0 1 2] [--json FILE]
    python -m benchmarks.loading --smoke

Photographs of noise over soft shapes are written as JPEG; a recipe reads them from a JSONL file, and batches are taken
as a trainer takes them: one after the other, computing between them. The first pass decodes every picture, the second
one sees them again. Two kinds of computing stand for a device: `other` sleeps as long as a batch takes to make alone,
as while a GPU works; `same` computes on the cores that decode. Batches of all settings are compared bit for bit. The
settings are interleaved, and figures are medians over the rounds.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from lrkit.contract.settings import ThinkSettings
from lrkit.provenance import collect
from lrkit.runtime.encode.kept_cuts import KeptCuts
from lrkit.train.ahead import Ahead
from lrkit.train.curriculum import Curriculum
from lrkit.train.fresh import fresh_processor
from lrkit.train.loading import LoaderConfig
from lrkit.train.recipe import Recipe, load_recipe

WORD = "Take"
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Setting:
    """What is timed."""

    workers: int
    kept: bool
    """Whether cut pictures are kept in memory."""
    computing: str
    """none, other or same: what happens between two batches."""


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = write(Path(folder), args.pictures, args.megapixels, args.batch_size)
        report = measure(recipe, args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    args.json.with_suffix(".md").write_text(text := render(report), encoding="utf-8")
    Console(width=140).print(text, markup=False, highlight=False)


def write(folder: Path, pictures: int, megapixels: float, batch_size: int) -> Recipe:
    """Photographs, the lines about them, and a recipe that reads these."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    rng = np.random.default_rng(0)
    for number in range(pictures):
        soft = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((height * 4 // 3, height))
        noise = rng.normal(0, 8, (height, height * 4 // 3, 1))
        Image.fromarray((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
    lines = [{"image": f"{n}.jpg", "question": WORD, "steps": [WORD], "answer": "1"} for n in range(pictures)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    data = {"kind": "jsonl", "train": str(folder / "data.jsonl")}
    stages = [{"name": "say", "updates": 1}]
    return load_recipe({"name": "loading", "init": "tiny", "data": data, "batch_size": batch_size, "stages": stages})


def measure(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """Every setting, once a round, and whether all made the same batches."""
    settings = list(_settings(args.workers))
    batches = args.pictures // args.batch_size
    alone, _ = passes(recipe, Setting(0, False, "none"), batches, 0.0)
    pause = alone[0] / batches
    figures: dict[Setting, list[list[float]]] = {setting: [] for setting in settings}
    digests: set[str] = set()
    for _ in range(args.rounds):
        for setting in settings:
            seconds, digest = passes(recipe, setting, batches, pause)
            figures[setting].append(seconds)
            digests.add(digest)
    rows = [
        {**asdict(setting), **_row([*map(list, zip(*found, strict=True))], args.pictures, batches, pause)}
        for setting, found in figures.items()
    ]
    return {
        "schema": 1, "kind": "loading", "pictures": args.pictures, "megapixels": args.megapixels,
        "batch_size": args.batch_size, "rounds": args.rounds, "batch_sec": round(pause, 4),
        "same_batches": len(digests) == 1, "rows": rows, "provenance": collect(),
    }  # fmt: skip


def _settings(workers: list[int]) -> Iterator[Setting]:
    for computing in ("none", "other", "same"):
        for count in workers:
            yield Setting(count, False, computing)
    yield from (Setting(count, True, "none") for count in workers)


def _row(passes: list[list[float]], pictures: int, batches: int, pause: float) -> dict[str, float]:
    """Medians of the first and the second pass; of a pass, the share that a trainer waited."""
    first, again, waited = (statistics.median(seconds) for seconds in passes)
    return {
        "first_pass_sec": round(first, 3),
        "second_pass_sec": round(again, 3),
        "pictures_per_sec": round(pictures / first, 2),
        "waiting_share": round(waited / first, 3),
        "computing_sec": round(pause * batches, 3),
    }


def passes(recipe: Recipe, setting: Setting, batches: int, pause: float) -> tuple[list[float], str]:
    """Seconds of two passes over the pictures and of waiting in the first, and the digest of all batches."""
    processor = fresh_processor()
    processor.kept = KeptCuts(CACHE_BYTES) if setting.kept else None
    source = recipe.data.open(recipe.seed, recipe.stages)
    ahead = Ahead(Curriculum(recipe, source, processor, ThinkSettings()), LoaderConfig(workers=setting.workers))
    digest, seconds, waited = hashlib.sha256(), list[float](), 0.0
    for number in range(2):
        started = time.perf_counter()
        for _ in range(batches):
            batch: Any = ahead.batch(0)
            digest.update(batch.pixel_values.numpy().tobytes())
            _compute(setting.computing, pause)
        seconds.append(time.perf_counter() - started)
        waited = ahead.waited_sec if number == 0 else waited
    ahead.stop()
    return [*seconds, waited], digest.hexdigest()


def _compute(kind: str, pause: float) -> None:
    """What a device does with a batch, for so long."""
    if kind == "other":
        time.sleep(pause)
    elif kind == "same":
        matrix, until = torch.ones(512, 512), time.perf_counter() + pause
        while time.perf_counter() < until:
            matrix @ matrix


def render(report: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        f"{report['pictures']} JPEG pictures of {report['megapixels']:g} megapixels, {report['batch_size']} a batch; "
        f"medians of {report['rounds']} rounds on {report['provenance']['num_cpus']} cores "
        f"({report['provenance']['cpu']}). A batch alone takes {report['batch_sec']:.3f} s; all settings gave "
        f"{'the same' if report['same_batches'] else 'DIFFERENT'} batches.",
        "",
        "| computing | workers | kept | first pass | second pass | pictures / s | waiting |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['computing']} | {row['workers']} | {'yes' if row['kept'] else 'no'} | {row['first_pass_sec']:.2f} s | "
        f"{row['second_pass_sec']:.2f} s | {row['pictures_per_sec']:.1f} | {row['waiting_share']:.0%} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("build/loading.json"))
    parser.add_argument("--smoke", action="store_true", help="Small pictures, one round: whether it runs.")
    args = parser.parse_args()
    if args.smoke:
        args.pictures, args.megapixels, args.batch_size, args.workers, args.rounds = 4, 0.2, 2, [0, 2], 1
    return args


if __name__ == "__main__":
    main()
