"""Programs on ONNX Runtime with a GPU against torch with CUDA graphs: seconds and joules of an answer.

    pip install lrkit[export] onnxruntime-gpu
    python benchmarks/gpu_answers.py
    python benchmarks/gpu_answers.py --models tiny --minutes 3 --json tiny-only.json

It stops by itself after 12 minutes. The report is written after each row, and a second run goes on with the rows that
are missing. A row that cannot be measured holds the reason. In the form `step` the state stays on the GPU between the
graphs. A program answers the prompts of a batch one by one. No figure of a GPU exists yet: the test of this script runs
its smallest size on a CPU.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lrkit import Reasoner
from lrkit.contract.bundle.io_spec import Form
from lrkit.contract.sample import Sample
from lrkit.data.shapes import shape_samples
from lrkit.data.sources import load_samples
from lrkit.errors import LrkitError, one_line
from lrkit.export.bundle import export_bundle
from lrkit.export.shape import SETTINGS, ShapeSubject
from lrkit.export.targets.target import ProgramLimits, Target
from lrkit.files import write_json
from lrkit.profile.measure.cases import ModelChoice
from lrkit.profile.measure.meters import EnergyMeter
from lrkit.profile.measure.shape_model import open_shape
from lrkit.provenance import collect
from lrkit.resources import random_shape

PICTURE = (448, 448)


@dataclass(frozen=True)
class Row:
    """What is measured together."""

    model: str
    engine: str
    """torch or onnxruntime."""
    precision: str
    form: str
    """program, step, or for torch: graphs, eager."""
    scene: bool
    """The picture was looked at before."""
    batch: int

    @property
    def name(self) -> str:
        """In the report."""
        return "/".join(map(str, asdict(self).values()))


def rows(models: Sequence[str], precisions: Sequence[str], batches: Sequence[int]) -> Iterator[Row]:
    """Those of one reasoner stand together, for it is opened once."""
    for model in models:
        for form in ("graphs", "eager"):
            yield from (Row(model, "torch", "fp16", form, False, batch) for batch in batches)
        for precision, form in itertools.product(precisions, ("program", "step")):
            yield from (Row(model, "onnxruntime", precision, form, False, batch) for batch in batches)
            yield Row(model, "onnxruntime", precision, form, True, 1)


def main() -> None:
    args = parse_args()
    end = time.monotonic() + 60 * args.minutes
    report = json.loads(args.json.read_text()) if args.json.is_file() else {"schema": 1, "kind": "gpu-answers"}
    report |= {"device": args.device, "repeats": args.repeats, "provenance": collect()}
    done: dict[str, Any] = report.setdefault("rows", {})
    with tempfile.TemporaryDirectory() as work:
        waiting = [row for row in rows(args.models, args.precisions, args.batches) if row.name not in done]
        for key, group in itertools.groupby(waiting, lambda row: (row.model, row.engine, row.precision, row.form)):
            if time.monotonic() >= end:
                break
            for row, found in measured(list(group), args, Path(work) / "-".join(key).replace(":", "-"), end):
                done[row.name] = {**asdict(row), **found}
                write_json(args.json, report)


def measured(
    group: Sequence[Row], args: argparse.Namespace, place: Path, end: float
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """The rows of one reasoner, as far as time allows."""
    first = group[0]
    try:
        samples = samples_of(first.model, max(row.batch for row in group))
        started = time.perf_counter()
        reasoner = opened(first, args, place, samples)
        opening = time.perf_counter() - started
    except (LrkitError, RuntimeError, ImportError, MemoryError) as error:
        yield from ((row, {"reason": one_line(error)}) for row in group)
        return
    for row in group:
        if time.monotonic() >= end:
            return
        try:
            yield row, {**timed(reasoner, row, samples, args, end), "opening_sec": opening}
        except (LrkitError, RuntimeError, MemoryError) as error:
            yield row, {"reason": one_line(error)}


def samples_of(model: str, count: int) -> list[Sample]:
    """Questions of the size that the model is for."""
    shape = random_shape(model)
    return load_samples("trail:main", count) if shape is None else shape_samples(shape, PICTURE, min(count, 8))


def opened(row: Row, args: argparse.Namespace, place: Path, samples: Sequence[Sample]) -> Reasoner:
    """The reasoner of a row; programs are exported first, and compared with torch on a sample."""
    cuda, shape = args.device == "cuda", random_shape(row.model)
    if row.engine == "torch":
        dtype, graphs = ("float16" if cuda else "float32"), row.form == "graphs" and cuda
        if shape is None:
            return Reasoner.from_checkpoint(row.model, args.device, dtype, graphs)
        choice = ModelChoice(path=row.model, device=args.device, dtype=dtype, cuda_graphs=graphs)
        return open_shape(shape, SETTINGS, choice).reasoner
    limits = ProgramLimits(max_new_tokens=args.tokens)
    activations = "fp16" if cuda else None
    target = Target.model_validate(
        {"precision": row.precision, "activations": activations, "provider": args.device, "limits": limits}
    )
    subject = row.model if shape is None else ShapeSubject(shape, target)
    form: Form = "step" if row.form == "step" else "program"
    shown = samples[:1] if shape is None else []  # torch would hold the weights of a shape once more
    export_bundle(subject, place, target, shown, form=form, allow_unproven=True, baselines=False)
    return Reasoner.load(place, provider=args.device)


def timed(
    reasoner: Reasoner, row: Row, samples: Sequence[Sample], args: argparse.Namespace, end: float
) -> dict[str, Any]:
    """Seconds and joules of an answer: the median, and each repeat's."""
    asked = [(one.images, one.question) for one in itertools.islice(itertools.cycle(samples), row.batch)]
    with answering(reasoner, row, samples[0], args.tokens) as once:
        ask = once or (lambda: reasoner.ask_batch(asked, "latent", max_new_tokens=args.tokens))
        ask()
        seconds, joules = [], []
        meter = EnergyMeter(args.device)
        for _ in range(args.repeats):
            meter.start()
            started = time.perf_counter()
            ask()
            seconds.append((time.perf_counter() - started) / row.batch)
            spent = meter.stop()
            joules.append(None if spent is None else spent / row.batch)
            if time.monotonic() >= end:
                break
    known = [value for value in joules if value is not None]
    return {
        "answer_sec": statistics.median(seconds), "seconds": seconds, "energy_source": meter.source,
        "answer_joules": statistics.median(known) if known else None,
    }  # fmt: skip


@contextmanager
def answering(reasoner: Reasoner, row: Row, sample: Sample, tokens: int) -> Iterator[Callable[[], Any] | None]:
    """How a question behind a look is asked; None where the whole prompt is."""
    if not row.scene:
        yield None
        return
    scene = reasoner.look(sample.images)
    yield lambda: scene.ask(sample.question, mode="latent", max_new_tokens=tokens)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["tiny", "random:qwen2-vl-2b"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="+", default=["fp16", "int4"])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/gpu-answers.json"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, on the CPU: whether it runs")
    args = parser.parse_args()
    if args.smoke:
        args.device, args.models, args.batches, args.repeats, args.tokens = "cpu", args.models[:1], [1], 1, 4
        args.precisions = ["int4"]
    return args


if __name__ == "__main__":
    main()
