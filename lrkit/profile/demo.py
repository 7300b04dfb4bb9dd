"""The demonstration behind `lrkit demo`: the shipped model answers pictures it has never seen in three ways, with one
trace, and then as one program without torch.

Place in the pipeline: assets/tiny + trail data -> figures, one worked example, trace.png; bundles -> sizes and
latencies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrkit.config import load_config
from lrkit.contract.generated import MODES, Mode
from lrkit.data.trail import trail_set
from lrkit.errors import require
from lrkit.evaluate.evaluation import EvalOptions, Evaluation, OnProgress, evaluate
from lrkit.files import replacing
from lrkit.pictures.load import load_image
from lrkit.resources import find_target, resolve_checkpoint
from lrkit.runtime.answer.answer import Answer
from lrkit.runtime.checks.bundle_check import check_bundle
from lrkit.runtime.sdk import Reasoner
from lrkit.summary import Summary, summarize

_EXAMPLE_HOPS = 4
_EXAMPLE_SEED = 2026
_CHECK_SAMPLES = 100
"""Pictures on which the demo's exports are compared with torch; `lrkit export` takes more."""


@dataclass(frozen=True)
class Demonstration:
    """What the demo shows."""

    evaluation: Evaluation
    example: dict[Mode, Answer]
    expected: str
    """The right answer to the example."""
    picture: Path
    """The example's picture, to ask further questions about."""
    trace: Path
    """The example's picture with the regions each latent step replayed."""

    def to_dict(self) -> dict[str, Any]:
        """The evaluation's figures and the example, for JSON."""
        example = {mode: answer.to_dict() for mode, answer in self.example.items()}
        return {**self.evaluation.to_dict(), "example": {"expected": self.expected, "answers": example}}


def demonstrate(
    checkpoint: str, folder: Path, samples: int, latency_samples: int, on_progress: OnProgress | None = None
) -> Demonstration:
    """Asks `samples` held-out pictures in the three modes, and one more for the example; writes its pictures to
    `folder`.

    Raises:
        FileError: they cannot be written.
    """
    reasoner = Reasoner.from_checkpoint(checkpoint)
    options = EvalOptions(batch_size=50, latency_samples=latency_samples)
    evaluation = evaluate(reasoner, trail_set("main", "test", samples), options, on_progress)
    sample = trail_set("main", "test", 1, seed=_EXAMPLE_SEED, hops=(_EXAMPLE_HOPS,))[0]
    example: dict[Mode, Answer] = {
        mode: reasoner.baseline(mode).ask(sample.images, sample.question, mode) for mode in MODES
    }
    picture, trace = folder / "rooms.png", folder / "trace.png"
    with replacing(picture) as place:
        load_image(sample.images[0]).save(place)
    example["latent"].save_trace(trace)
    return Demonstration(evaluation, example, sample.answer, picture, trace)


@dataclass(frozen=True)
class EngineFigures:
    """One way of running the same reasoner."""

    name: str
    bytes: int
    """All files it needs to run, Python packages left out."""
    correct: int
    latency: Summary
    """Seconds per answer, end to end, batch 1."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bytes": self.bytes,
            "correct": self.correct,
            "latency_sec_median": self.latency.median,
            "latency_sec": self.latency.to_dict(),
        }


def compare_engines(
    checkpoint: str, folder: Path, samples: int, on_progress: Callable[[str], None]
) -> list[EngineFigures]:
    """Exports the checkpoint in float32 and in int4 into `folder`, and times both and torch, taking turns on each
    sample, one thread each: a second thread of one engine would wait in a loop on the core that the next one needs.

    Raises:
        ExportError: a program differs from torch.
        MissingExtraError: the packages that export needs are not installed.
    """
    require("onnx", "export")
    require("onnxscript", "export")
    import torch

    threads = torch.get_num_threads()
    engines = {"torch float32": (Reasoner.from_checkpoint(checkpoint), _checkpoint_bytes(checkpoint))}
    for name, target in (("program float32", "cpu-fp32"), ("program int4", "cpu-int4")):
        on_progress(f"export: {name}, checked against torch")
        bundle = _export(checkpoint, folder / target, target)
        on_progress(f"validate: {name}")
        check_bundle(bundle).raise_if_bad()
        engines[name] = (Reasoner.load(bundle, threads=1), _folder_bytes(bundle))
    asked = trail_set("main", "test", samples, seed=_EXAMPLE_SEED)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    correct = dict.fromkeys(engines, 0)
    on_progress("ask: the three in turn, one thread each")
    torch.set_num_threads(1)
    for turn, sample in enumerate([asked[0], *asked]):
        for name, (reasoner, _) in engines.items():
            answer = reasoner.ask(sample.images, sample.question)
            if turn > 0:  # the first round warms up
                seconds[name].append(answer.timings["total"])
                correct[name] += answer.answer == sample.answer
    torch.set_num_threads(threads)
    return [EngineFigures(name, size, correct[name], summarize(seconds[name])) for name, (_, size) in engines.items()]


def _export(checkpoint: str, bundle: Path, target: str) -> Path:
    from lrkit.export.bundle import export_bundle
    from lrkit.export.targets.target import Target

    samples = trail_set("main", "val", _CHECK_SAMPLES)
    export_bundle(checkpoint, bundle, load_config(Target, find_target(target)), samples, baselines=False, force=True)
    return bundle


def _checkpoint_bytes(checkpoint: str) -> int:
    """The checkpoint and the base it stands on."""
    from lrkit.checkpoints.checkpoint_folder import base_folder, read_info

    folder = resolve_checkpoint(checkpoint)
    folders = {folder, base_folder(folder, read_info(folder))}
    return sum(_folder_bytes(one) for one in folders)


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
