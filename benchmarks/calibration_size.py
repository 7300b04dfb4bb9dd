"""Memory and time of a calibration at a model's real size, with random weights.

    OMP_NUM_THREADS=2 python -m benchmarks.calibration_size qwen2-vl-2b --numbers bfloat16 --samples 128 [--json FILE]

Random weights round like any others, so that memory and time are those of a real model; what they lose is not. Samples
are pictures of noise, of the shape's size. The report has the seconds of reading and of rounding apart, by the clock
and of CPU time, and the peak of the process's memory. `--numbers bfloat16` rounds the random weights to the type that
such a model is published in. A calibration that was interrupted goes on where --folder holds what it has done; its
report then has the last run's seconds alone.
"""

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training_step import cpu_name, versions
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.sample import Sample
from lrkit.errors import LrkitError
from lrkit.export.calibration.calibrate import Calibrator
from lrkit.export.calibration.gather import CalibrationSet
from lrkit.export.shape import ShapeOrigin, ShapeSubject
from lrkit.export.targets.target import Target, limits_of


def measure(
    shape: str, samples: int, target: Target, folder: Path, numbers: str = "float32", seed: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Calibrates the layers of a shape; `target` says how its program is rounded, `numbers` what the weights are."""
    subject = ShapeSubject(shape, target)
    floats = Target(limits=target.limits, max_pixels=target.max_pixels)
    origin = ShapeOrigin(subject.shape, subject.processor, floats)
    limits: Limits = limits_of(target, origin.settings.think.max_latent_steps, subject.processor.geometry)
    calibrator = Calibrator(target, CalibrationSet("noise", _noise(subject, samples, seed)), folder, shape)
    done, kind = _Timeline(), torch.bfloat16 if numbers == "bfloat16" else torch.float32
    made = calibrator.made("latent", partial(origin.reasoner, kind=kind), subject.processor, limits, done.note)
    return {
        "shape": subject.shape.description, "samples": samples, "method": target.int4.method,
        "block": target.int4.block, "matrices": len(made.integers), **calibrator.report["latent"],
        **done.seconds(), "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "cpu": cpu_name(), "versions": versions(),
    }  # fmt: skip


def _noise(subject: ShapeSubject, count: int, seed: int) -> list[Sample]:
    from PIL import Image

    drawn, (width, height) = np.random.default_rng(seed), subject.shape.picture[:2]
    pictures = (Image.fromarray(drawn.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count))
    question = "Take 4 hops. Which room are you in? Start in room {}"
    return [Sample((one,), question.format(i % 10), (), "0", f"noise-{i}") for i, one in enumerate(pictures)]


class _Timeline:
    """Adds up the seconds between two notes, by what went on: of the clock, and of CPU time, which other work on the
    machine does not lengthen."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}
        self.last = ("loading", *_clocks())

    def note(self, what: str, done: int, total: int) -> None:
        """What goes on from now on."""
        now, cpu = _clocks()
        kind, since, cpu_since = self.last
        spent = self.spent.setdefault(kind, [0.0, 0.0])
        spent[0] += now - since
        spent[1] += cpu - cpu_since
        words = what.partition(": ")[2].split()
        self.last = (words[0] if done < total or total == 0 else "between", now, cpu)
        print(f"{now - since:8.1f} s  {cpu - cpu_since:8.1f} s of CPU  then {what} {done} of {total}", flush=True)

    def seconds(self) -> dict[str, dict[str, float]]:
        """By clock and kind of work."""
        self.note("end: end", 0, 0)
        names = ("seconds_by_work", "cpu_seconds_by_work")
        return {name: {kind: round(one[i], 1) for kind, one in self.spent.items()} for i, name in enumerate(names)}


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    args = parse_args()
    try:
        run(args)
    except LrkitError as error:
        print(f"calibration_size.py: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: argparse.Namespace) -> None:
    """Measures, and writes the report."""
    int4 = {"method": args.method, "block": args.block, "head": "float"}
    limits = {"max_new_tokens": args.spoken}
    target = Target.model_validate({"precision": "int4", "int4": int4, "limits": limits})
    folder = args.folder or Path(tempfile.mkdtemp())
    report = measure(args.shape, args.samples, target, folder, args.numbers)
    if args.folder is None:
        shutil.rmtree(folder)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in ("seconds", "seconds_by_work", "rounds", "peak_bytes")}))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="a name of `lrkit ls shape`, or a JSON file")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--method", default="gptq", choices=["gptq", "awq"])
    parser.add_argument("--block", type=int, default=128, choices=[128, 64, 32])
    parser.add_argument("--spoken", type=int, default=8, help="tokens of an answer")
    parser.add_argument("--numbers", default="float32", choices=["float32", "bfloat16"], help="what weights are")
    parser.add_argument("--folder", type=Path, help="where finished layers are kept")
    parser.add_argument("--json", type=Path, default=Path("calibration.json"))
    parser.add_argument("--smoke", action="store_true", help="four samples")
    args = parser.parse_args()
    args.samples = 4 if args.smoke else args.samples
    return args


if __name__ == "__main__":
    main()
