"""Compares the answers of the two dialects, `tensorrt` and `ort`, both in ONNX Runtime on the CPU.

    python benchmarks/dialects.py
    python benchmarks/dialects.py --samples 32 --variants fp32 --json few.json

No engine runs without its GPU, but ONNX Runtime also runs the program that engines are built from. Each variant is
built in both dialects from one checkpoint and answers the same pictures, which training has not seen. Answers, latent
steps, replayed tokens, extra passes and numbers are compared sample by sample. Variants are compared with the float32
program too, which says what rounding costs. In float32 any difference of a choice is an error, and the exit code is 1.
The JSON is the source; the Markdown beside it is rendered from it.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import track

from lrkit.contract.bundle.manifest import Dialect as Dialects
from lrkit.contract.settings import RoutingSettings
from lrkit.data.sources import load_samples
from lrkit.export.check import ProgramRun, Trace, relative_error
from lrkit.export.graph.dialects import writer_for
from lrkit.export.graph.program import build_program
from lrkit.export.graph.stack import Stack
from lrkit.export.graph.tower_writer import write_tower
from lrkit.export.sessions import open_program
from lrkit.export.targets.target import Int4, Target, limits_of
from lrkit.export.weights.source import read_source
from lrkit.model.checkpoint import load_checkpoint
from lrkit.provenance import collect
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.onnxruntime.engine import optimizers_off

ROUTED = RoutingSettings(depth=2, alpha=32, threshold=0.5)
"""The shipped model does not route: its weights with routers that have not learned, so that depth loops run too."""


@dataclass(frozen=True)
class Variant:
    """What is built in both dialects."""

    target: Target
    routed: bool = False


VARIANTS: dict[str, Variant] = {
    "fp32": Variant(Target(precision="fp32")),
    "fp16": Variant(Target(precision="fp16")),
    "int4": Variant(Target(precision="int4", int4=Int4(accuracy_level=0))),
    "int4, int8 activations in ort": Variant(Target(precision="int4", int4=Int4(accuracy_level=4))),
    "int4, fp16 activations": Variant(Target(precision="int4", activations="fp16", int4=Int4(accuracy_level=0))),
    "fp32, untrained routers": Variant(Target(precision="fp32"), routed=True),
    "int4, untrained routers": Variant(Target(precision="int4", int4=Int4(accuracy_level=0)), routed=True),
}
KINDS = ("spoken tokens", "latent steps", "halting", "replayed tokens", "extra passes")
"""Choices that are compared."""
NUMBERS = ("prefill_logits", "latent_states")
"""Largest difference, in units of the largest number (at least 1)."""


def main() -> None:
    args = parse_args()
    report = measure(args.checkpoint, args.data, args.samples, args.variants)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    text = render(report)
    args.json.with_suffix(".md").write_text(text, encoding="utf-8")
    Console(width=160).print(text, markup=False, highlight=False)
    exact = [found for name, found in report["variants"].items() if name.startswith("fp32")]
    if any(min(found["dialects"]["same"].values()) < report["samples"] for found in exact):
        sys.exit(1)


def measure(checkpoint: str, data: str, count: int, names: Sequence[str]) -> dict[str, Any]:
    """Builds, answers, compares."""
    folder = resolve_checkpoint(checkpoint)
    samples = load_samples(data, count)
    processor = Processor.from_folder(folder)
    prompts = [processor.encode_prompt(sample.images, sample.question) for sample in samples]
    answers = [sample.answer for sample in samples]
    variants: dict[str, Any] = {}
    reference: list[Trace] | None = None
    for name in names:
        variant = VARIANTS[name]
        traces = {
            dialect: answer_all(folder, variant, dialect, prompts, f"{name} {dialect}")
            for dialect in ("ort", "standard")
        }
        reference = reference or (traces["ort"] if name == "fp32" else None)
        comparable = None if variant.routed else reference
        variants[name] = {
            "dialects": compare(traces["ort"], traces["standard"]),
            "passes": {dialect: sum(sum(one.passes.values()) for one in found) for dialect, found in traces.items()},
            "right": {dialect: num_right(processor, found, answers) for dialect, found in traces.items()},
            "against_fp32": {
                dialect: None if comparable is None else compare(comparable, found) for dialect, found in traces.items()
            },
        }
    return {
        "schema": 1, "kind": "dialects", "checkpoint": checkpoint, "data": data, "split": "test",
        "samples": len(samples), "variants": variants, "provenance": collect(),
    }  # fmt: skip


def answer_all(
    folder: Path, variant: Variant, dialect_name: Dialects, prompts: Sequence[EncodedPrompt], what: str
) -> list[Trace]:
    """Every answer of the program of `folder` in that dialect."""
    target = variant.target.model_copy(update={"dialect": dialect_name})
    reasoner = load_checkpoint(folder, dtype=torch.float32).reasoner
    if variant.routed:
        torch.manual_seed(0)  # of the routers, alike in both dialects
        settings = reasoner.settings.model_copy(update={"routing": ROUTED})
        reasoner = load_checkpoint(folder, settings=settings, dtype=torch.float32).reasoner
    processor = Processor.from_folder(folder)
    source = read_source(reasoner)
    limits = limits_of(target, reasoner.settings.think.max_latent_steps, processor.geometry)
    dialect = writer_for(target, source.weight, source.dimensions.recipe.norm)
    tower = write_tower(source, processor.geometry, dialect)
    program = build_program(Stack(source, dialect, limits, processor.geometry), processor.end_ids, tower)
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "latent.onnx"
        ir.save(program.model, file)
        session = open_program(file, program.spec, optimizers_off(target.dialect, target.precision))
        run = ProgramRun(session, program.spec, reasoner.settings, program.routed_layers, processor, limits, "latent")
        return [run.trace(prompt) for prompt in track(prompts, what, console=Console(stderr=True), transient=True)]


def compare(expected: Sequence[Trace], seen: Sequence[Trace]) -> dict[str, Any]:
    """{same: kind -> samples alike, first: kind -> the first sample that differs, errors: largest of the numbers}."""
    same, first = dict.fromkeys(KINDS, 0), {}
    errors = dict.fromkeys(NUMBERS, 0.0)
    for number, (one, other) in enumerate(zip(expected, seen, strict=True)):
        for kind, ours, theirs in zip(KINDS, choices(one), choices(other), strict=True):
            if ours == theirs:
                same[kind] += 1
            else:
                first.setdefault(kind, {"sample": number, "expected": ours, "seen": theirs})
        steps = min(len(one.states), len(other.states))
        errors["prefill_logits"] = max(errors["prefill_logits"], relative_error(other.logits, one.logits))
        if steps:
            found = relative_error(other.states[:steps], one.states[:steps])
            errors["latent_states"] = max(errors["latent_states"], found)
    return {"same": same, "first_difference": first, "largest_error": errors}


def choices(trace: Trace) -> tuple[Any, ...]:
    """In the order of KINDS."""
    return trace.token_ids, trace.latent_steps, trace.halting, trace.replayed, trace.passes


def num_right(processor: Processor, traces: Sequence[Trace], answers: Sequence[str]) -> int:
    """Right answers."""
    said = [processor.decode(trace.token_ids) for trace in traces]
    found = [processor.format.find_answer(text, "latent") or "" for text in said]
    return sum(one.strip().casefold() == answer.strip().casefold() for one, answer in zip(found, answers, strict=True))


COLUMNS = ["same answer", "same latent steps", "same replayed tokens", "same extra passes", "logits", "latent states"]
ABOUT = """
Logits and latent states: the largest difference over all samples, in units of the largest number (of the latent states,
where both took a step). An answer is the same when every spoken token is. A choice between near equals may fall the
other way once numbers are rounded, and the steps after it then differ with it. The shipped model does not route, so its
extra passes are none; with routers that have not learned it takes those of the last column.
"""


def render(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    count, made = report["samples"], report["provenance"]
    rows = [
        [name, *_cells(found["dialects"], count), *_right(found, count), f"{found['passes']['standard']:,}"]
        for name, found in report["variants"].items()
    ]
    rounded = [
        [name, dialect, *_cells(against, count)]
        for name, found in report["variants"].items()
        for dialect, against in found["against_fp32"].items()
        if against is not None and (name, dialect) != ("fp32", "ort")
    ]
    lines = [
        "# The two dialects, side by side",
        "",
        f"`{report['checkpoint']}` on {count} pictures of `{report['data']}` that training has not seen, both dialects",
        "in ONNX Runtime on the CPU: `python benchmarks/dialects.py`. The JSON beside this file is the source.",
        f"onnxruntime {made['packages']['onnxruntime']}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        "## tensorrt against ort",
        "",
        *_table(["variant", *COLUMNS, "right, ort", "right, standard", "extra passes"], rows),
        "",
        "## Against the float32 program of the dialect ort",
        "",
        *_table(["variant", "dialect", *COLUMNS], rounded),
    ]
    return "\n".join(lines) + "\n" + ABOUT


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cells(found: dict[str, Any], count: int) -> list[str]:
    kinds = ("spoken tokens", "latent steps", "replayed tokens", "extra passes")
    shares = [f"{found['same'][kind]} of {count}" for kind in kinds]
    return [*shares, *(f"{found['largest_error'][name]:.1e}" for name in NUMBERS)]


def _right(found: dict[str, Any], count: int) -> list[str]:
    return [f"{found['right'][dialect] / count:.1%}" for dialect in ("ort", "standard")]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--data", default="trail:main")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/dialects.json"))
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.samples, args.variants = 32, ["fp32"]
    return args


if __name__ == "__main__":
    main()
