"""Compares the answers of the two dialects on the CPU: `ort` in ONNX Runtime, `standard` there and in OpenVINO.

    python -m benchmarks.dialects
    python -m benchmarks.dialects --resume          # only the variants that the JSON does not have
    python -m benchmarks.dialects --samples 32 --variants fp32 --json few.json

TensorRT needs its GPU, but ONNX Runtime also runs the program that engines are built from. Each variant is built in
both dialects from one checkpoint and answers the same pictures, which training has not seen. Answers, latent steps,
replayed tokens, extra passes and numbers are compared sample by sample. Variants are compared with the float32 program
too, which says what rounding costs. In float32 any difference of a choice is an error, and the exit code is 1; but not
where OpenVINO multiplies in bfloat16, which rounds. The JSON is the source; the Markdown beside it is rendered from it.
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

from lrkit.contract.bundle.manifest import Dialect
from lrkit.contract.settings import RoutingSettings
from lrkit.data.sources import load_samples
from lrkit.export.check import ProgramRun, Trace, relative_error
from lrkit.export.graph.dialects import DIALECTS, writer_for
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
from lrkit.runtime.engines.openvino.compiled import compile_graph
from lrkit.runtime.engines.openvino.library import installed_version
from lrkit.runtime.engines.openvino.options import Numbers, OpenVinoOptions

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
REFERENCE = "ort"
RUNS: dict[str, tuple[Dialect, str | None]] = {
    REFERENCE: ("ort", None),
    "standard": ("standard", None),
    "OpenVINO, f32": ("standard", "f32"),
    "OpenVINO, bf16": ("standard", "bf16"),
}
"""Who answers -> (dialect, precision of OpenVINO's products; None: ONNX Runtime)."""
KINDS = ("spoken tokens", "latent steps", "halting", "replayed tokens", "extra passes")
"""Choices that are compared."""
NUMBERS = ("prefill_logits", "latent_states")
"""Largest difference, in units of the largest number (at least 1)."""


def main() -> None:
    args = parse_args()
    report = measure(args)
    Console(width=200).print(render(report), markup=False, highlight=False)
    exact = [found for name, found in report["variants"].items() if name.startswith("fp32")]
    seen = [against["same"] for found in exact for who, against in found["against_ort"].items() if "bf16" not in who]
    if any(min(same.values()) < report["samples"] for same in seen):
        sys.exit(1)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Builds, answers, compares; what is known is written after every variant."""
    folder = resolve_checkpoint(args.checkpoint)
    samples = load_samples(args.data, args.samples)
    processor = Processor.from_folder(folder)
    prompts = [processor.encode_prompt(sample.images, sample.question) for sample in samples]
    answers = [sample.answer for sample in samples]
    report: dict[str, Any] = {
        "schema": 2, "kind": "dialects", "checkpoint": args.checkpoint, "data": args.data, "split": "test",
        "samples": len(samples), "variants": {},
    }  # fmt: skip
    if args.resume and args.json.is_file():
        before = json.loads(args.json.read_text(encoding="utf-8"))
        if all(before.get(key) == value for key, value in report.items() if key != "variants"):
            report["variants"] = {
                name: before["variants"][name] for name in args.variants if name in before["variants"]
            }
    who = [name for name, (_, precision) in RUNS.items() if precision is None or installed_version()]
    reference: list[Trace] | None = None
    for name in args.variants:
        needed = name not in report["variants"]
        if not needed and name != "fp32":
            continue
        variant = VARIANTS[name]
        traces = answer_all(folder, variant, prompts, name, who if needed else [REFERENCE])
        reference = reference or (traces[REFERENCE] if name == "fp32" else None)
        if needed:
            comparable = None if variant.routed else reference
            report["variants"][name] = {
                "against_ort": {
                    who: compare(traces[REFERENCE], found) for who, found in traces.items() if who != "ort"
                },
                "passes": {who: sum(sum(one.passes.values()) for one in found) for who, found in traces.items()},
                "right": {who: num_right(processor, found, answers) for who, found in traces.items()},
                "against_fp32": {
                    who: None if comparable is None else compare(comparable, found) for who, found in traces.items()
                },
            }
        write(report | {"provenance": collect()}, args.json)
    return report | {"provenance": collect()}


def write(report: dict[str, Any], file: Path) -> None:
    """The JSON and the page beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    file.with_suffix(".md").write_text(render(report), encoding="utf-8")


def answer_all(
    folder: Path, variant: Variant, prompts: Sequence[EncodedPrompt], what: str, who: Sequence[str]
) -> dict[str, list[Trace]]:
    """Every answer of the programs of `folder`, by who of `RUNS` gives it."""
    made: dict[str, list[Trace]] = {}
    for dialect in DIALECTS:
        with tempfile.TemporaryDirectory() as work:
            program = Built(folder, variant, dialect, Path(work) / "latent.onnx")
            for name in who:
                if RUNS[name][0] == dialect:
                    run, label = program.opened(RUNS[name][1]), f"{what}: {name}"
                    shown = track(prompts, label, console=Console(stderr=True), transient=True)
                    made[name] = [run.trace(prompt) for prompt in shown]
    return made


class Built:
    """A variant as a program of one dialect, in a file."""

    def __init__(self, folder: Path, variant: Variant, dialect_name: Dialect, file: Path) -> None:
        self.file, self.processor = file, Processor.from_folder(folder)
        self.target = target = variant.target.model_copy(update={"dialect": dialect_name})
        reasoner = load_checkpoint(folder, dtype=torch.float32).reasoner
        if variant.routed:
            torch.manual_seed(0)  # of the routers, alike in both dialects
            settings = reasoner.settings.model_copy(update={"routing": ROUTED})
            reasoner = load_checkpoint(folder, settings=settings, dtype=torch.float32).reasoner
        source, geometry = read_source(reasoner), self.processor.geometry
        self.settings = reasoner.settings
        self.limits = limits_of(target, reasoner.settings.think.max_latent_steps, geometry)
        dialect = writer_for(target, source.weight, source.dimensions.recipe.norm)
        tower = write_tower(source, geometry, dialect)
        stack = Stack(source, dialect, self.limits, geometry)
        self.program = build_program(stack, self.processor.end_ids, tower)
        ir.save(self.program.model, file)

    def opened(self, precision: str | None) -> ProgramRun:
        """In OpenVINO with products of that precision; None: in ONNX Runtime."""
        spec, layers = self.program.spec, self.program.routed_layers
        if precision is None:
            session: Any = open_program(
                self.file, spec, optimizers_off=optimizers_off(self.target.dialect, self.target.precision)
            )
        else:
            numbers = Numbers(precision, int8_activations=self.target.int4.accuracy_level == 4)
            session = compile_graph(self.file, spec, OpenVinoOptions(), numbers)
        return ProgramRun(session, spec, self.settings, layers, self.processor, self.limits, "latent")


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
        [name, who, *_cells(against, count), *_right(found, ("ort", who), count), f"{found['passes'][who]:,}"]
        for name, found in report["variants"].items()
        for who, against in found["against_ort"].items()
    ]
    rounded = [
        [name, who, *_cells(against, count)]
        for name, found in report["variants"].items()
        for who, against in found["against_fp32"].items()
        if against is not None and (name, who) != ("fp32", REFERENCE)
    ]
    versions = ", ".join(f"{name} {made['packages'].get(name)}" for name in ("onnxruntime", "openvino"))
    lines = [
        "# The two dialects, side by side",
        "",
        f"`{report['checkpoint']}` on {count} pictures of `{report['data']}` that training has not seen, on the CPU:",
        "the dialect ort in ONNX Runtime, the dialect standard there and in OpenVINO with products in float32 and in",
        "bfloat16 (`python -m benchmarks.dialects`). The JSON beside this file is the source.",
        f"{versions}, {made['cpu']}, {made['time_utc'][:10]}.",
        "",
        "## The dialect standard against ort",
        "",
        *_table(["variant", "standard in", *COLUMNS, "right, ort", "right", "extra passes"], rows),
        "",
        "## Against the float32 program of the dialect ort",
        "",
        *_table(["variant", "dialect, or standard in", *COLUMNS], rounded),
    ]
    return "\n".join(lines) + "\n" + ABOUT


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cells(found: dict[str, Any], count: int) -> list[str]:
    kinds = ("spoken tokens", "latent steps", "replayed tokens", "extra passes")
    shares = [f"{found['same'][kind]} of {count}" for kind in kinds]
    return [*shares, *(f"{found['largest_error'][name]:.1e}" for name in NUMBERS)]


def _right(found: dict[str, Any], who: Sequence[str], count: int) -> list[str]:
    return [f"{found['right'][name] / count:.1%}" for name in who]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tiny")
    parser.add_argument("--data", default="trail:main")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", type=Path, default=Path("profiles/reports/dialects.json"))
    parser.add_argument("--resume", action="store_true", help="keep the variants that the JSON already has")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: whether it runs, not how fast")
    args = parser.parse_args()
    if args.smoke:
        args.samples, args.variants = 32, ["fp32"]
    return args


if __name__ == "__main__":
    main()
