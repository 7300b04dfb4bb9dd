"""Methods of rounding side by side, on torch: accuracy lost, what is chosen otherwise, and the error by phase.

    python -m benchmarks.quantization tiny --data trail:main trail:faint trail:wide --samples 2000
    python -m benchmarks.quantization tiny my-checkpoint --methods rtn gptq gptq@prompt --bits 4 3 --layers
    python -m benchmarks.quantization --report          # renders again what is there

Every method rounds layers, head and embedding as `lrkit export --int4` does. Torch then answers the samples with what
the integers stand for, and every answer is compared with that of the floats. A method may name the phases that it is
calibrated on, joined by +: gptq@prompt, gptq@prompt+latent; gptq alone has all three. Calibration is drawn from the
training half. No program holds 3 bits: they show how far a method goes.

The JSON is the source, and is written after each comparison; the same command goes on where it stopped. The Markdown
beside it is rendered from it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.sample import Sample
from lrkit.contract.schemes import CALIBRATED, Method
from lrkit.data.sources import load_samples
from lrkit.errors import LrkitError, UserError
from lrkit.export.calibration.gather import CalibrationSet
from lrkit.export.calibration.sums import PHASES, Phase, Sums
from lrkit.export.phases.answers import Answered
from lrkit.export.phases.comparing import answered, compare
from lrkit.export.phases.quantization_page import render
from lrkit.export.phases.rounding import Held, hessians, round_weights
from lrkit.export.subject import CheckpointSubject
from lrkit.export.targets.target import Target
from lrkit.files import read_json, write_json, write_text
from lrkit.provenance import collect
from lrkit.resources import resolve_checkpoint
from lrkit.runtime.encode.processor import EncodedPrompt

LIMITS = Limits(max_prompt_tokens=1 << 16, max_patches=1 << 16, max_images=64, max_latent_steps=64, max_new_tokens=256)
JSON = Path("profiles/reports/quantization.json")
METHODS = ("rtn", "search", "gptq", "gptq@prompt")


@dataclass(frozen=True)
class Way:
    """One way to round."""

    method: Method
    phases: tuple[Phase, ...]
    """What it is calibrated on; empty: nothing."""
    bits: int

    @classmethod
    def of(cls, name: str, bits: int) -> "Way":
        """By METHOD or METHOD@PHASE+PHASE. Raises `UserError`."""
        method, _, phases = name.partition("@")
        known: dict[str, Method] = {one: one for one in get_args(Method)}
        named: dict[str, Phase] = {one: one for one in PHASES}
        wanted = phases.split("+") if phases else []
        if method not in known or any(one not in named for one in wanted):
            raise UserError(
                f"{name!r} is no way to round; give one of {', '.join(known)}, with @ and phases joined by + where it "
                f"calibrates ({', '.join(PHASES)})"
            )
        chosen: tuple[Phase, ...] = tuple(named[one] for one in wanted) if wanted else PHASES
        return cls(known[method], chosen if known[method] in CALIBRATED else (), bits)

    @property
    def name(self) -> str:
        """In the report."""
        return self.method + (f" on {' and '.join(self.phases)}" if self.phases and self.phases != PHASES else "")


@dataclass
class Asked:
    """A checkpoint with what the floats answered, which is found out once."""

    subject: CheckpointSubject
    limits: Limits
    layers: bool
    prompts: dict[str, list[EncodedPrompt]] = field(default_factory=dict[str, list[EncodedPrompt]])
    right: dict[str, list[str | None]] = field(default_factory=dict[str, list[str | None]])
    floats: dict[str, list[Answered]] = field(default_factory=dict[str, list[Answered]])

    def read(self, name: str, samples: Sequence[Sample]) -> None:
        """A set of samples."""
        self.prompts[name] = [self.subject.processor.encode_prompt(one.images, one.question) for one in samples]
        self.right[name] = [one.answer or None for one in samples]

    def load(self, target: Target) -> Held:
        """The model in floats, its matrices ready to be rounded."""
        return Held.of(self.subject.origins(False)["latent"].reasoner(), target)

    def report(self, name: str, held: Held) -> Mapping[str, Any]:
        """How far its answers to a set are from those of the floats."""
        processor, prompts = self.subject.processor, self.prompts[name]
        if name not in self.floats:
            exact = self.load(Target()).reasoner
            self.floats[name] = answered(exact, processor, prompts, "latent", self.limits, None, self.layers)
        expected = self.floats[name]
        seen = answered(held.reasoner, processor, prompts, "latent", self.limits, expected, self.layers)
        return compare(processor, "latent", expected, seen, self.right[name])


def measure(
    checkpoint: str, ways: Sequence[Way], asked: argparse.Namespace, rows: list[dict[str, Any]],
    save: Callable[[], None],
) -> None:  # fmt: skip
    """Adds a row for each set and way that `rows` lacks."""
    subject = Asked(CheckpointSubject(resolve_checkpoint(checkpoint)), LIMITS, asked.layers)
    done = {(row["checkpoint"], row["set"], row["samples"], row["bits"], row["block"], row["way"]) for row in rows}
    sums: dict[str, Sums] | None = None
    for way in ways:
        left = [n for n in asked.data if (checkpoint, n, asked.samples, way.bits, asked.block, way.name) not in done]
        if not left:
            continue
        int4 = {"block": asked.block, "method": way.method}
        held = subject.load(Target.model_validate({"precision": asked.precision, "int4": int4}))
        if way.phases and sums is None:
            samples = load_samples(asked.calibration, asked.calibration_samples, "train")
            given = CalibrationSet(asked.calibration, samples)
            sums = hessians(held, subject.subject.processor, "latent", LIMITS, given)
        round_weights(held, way.bits, sums if way.phases else None, dict.fromkeys(way.phases, 1.0) or None)
        for name in left:
            if name not in subject.prompts:
                subject.read(name, load_samples(name, asked.samples))
            found = subject.report(name, held)
            rows.append({
                "checkpoint": checkpoint, "set": name, "samples": asked.samples, "bits": way.bits, "block": asked.block,
                "way": way.name, "precision": asked.precision, **found,
            })  # fmt: skip
            save()
            print(_line(rows[-1]), flush=True)


def _line(row: Mapping[str, Any]) -> str:
    lost, last = row["accuracy"], row["phases"].get("latent.last")
    accuracy = "" if lost is None else f"lost {100 * lost['lost']['difference']:+.2f} points, "
    return (
        f"{row['checkpoint']} {row['set']} {row['way']} {row['bits']} bits: {accuracy}"
        f"halting {row['agreement']['halting']:.2%}" + ("" if last is None else f", last latent {last['mean']:.4f}")
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--bits", nargs="+", type=int, choices=(3, 4), default=(4, 3))
    parser.add_argument("--precision", choices=("int4", "int4-offsets"), default="int4")
    parser.add_argument("--block", type=int, choices=(128, 64, 32), default=128)
    parser.add_argument("--data", nargs="+", default=["trail:main"])
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--calibration", default="trail:main")
    parser.add_argument("--calibration-samples", type=int, default=64)
    parser.add_argument("--layers", action="store_true", help="also what is behind each layer")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--report", action="store_true", help="only render what is there")
    parser.add_argument("--smoke", action="store_true", help="two methods, four samples")
    asked = parser.parse_args()
    if asked.smoke:
        asked.methods, asked.bits, asked.samples, asked.calibration_samples = ["rtn", "gptq@prompt"], [4], 4, 4
    try:
        _run(asked)
    except LrkitError as error:
        parser.error(str(error))


def _run(asked: argparse.Namespace) -> None:
    ways = [Way.of(name, bits) for bits in asked.bits for name in asked.methods]
    held = read_json(asked.json) if asked.json.is_file() else {}
    rows: list[dict[str, Any]] = held.get("rows", [])
    calibration = {"set": asked.calibration, "samples": asked.calibration_samples, "half": "train"}

    def save() -> None:
        report = {"schema": 1, "kind": "quantization", "calibration": calibration, "rows": rows}
        write_json(asked.json, {**report, "provenance": collect()})

    if not asked.report:
        for checkpoint in asked.checkpoints:
            measure(checkpoint, ways, asked, rows, save)
    write_text(asked.json.with_suffix(".md"), render(read_json(asked.json)))


if __name__ == "__main__":
    main()
