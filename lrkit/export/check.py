"""Proves a program equal to the torch model, or measures how far it is from it; part of every export.

Place in the pipeline: bundle.py writes a program, `check_program` runs it beside torch on samples that training did
not see, and raises when they differ by more than the precision explains.

What is compared per sample: logits after the prompt, every latent state, every replayed token, the number of latent
steps, the extra passes of routing, the spoken tokens.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrkit.data.collate import PromptBatch, collate_prompts
from lrkit.errors import ExportError
from lrkit.model.generate import generate
from lrkit.model.generated import Generated, GenerationLimits, Mode
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences
from lrkit.runtime.feed import build_feed
from lrkit.runtime.io_spec import HALTING, IoSpec
from lrkit.runtime.manifest import Limits, Precision, Role, StepEntry, StepName, Validation
from lrkit.runtime.processor import EncodedPrompt, Processor
from lrkit.runtime.steps import StepSession

TOLERANCES: dict[Precision, dict[str, float]] = {
    "fp32": {"numbers": 1e-4, "agreement": 1.0, "accuracy_drop": 0.0},
    "fp16": {"numbers": 5e-2, "agreement": 0.9, "accuracy_drop": 0.02},
    "int4": {"accuracy_drop": 0.05},
}
REASONS: dict[Precision, str] = {
    "fp32": "same float32 operations in another order: numbers within 1e-4 of the largest, every choice the same",
    "fp16": "11 significant bits through every layer; a choice between near equals may fall the other way",
    "int4": "4-bit weights are another model: numbers are reported, only the loss of right answers is bounded",
}
"""Why each tolerance is what it is; kept in the bundle."""

BATCH = 25
"""Samples that torch answers at once; that batching changes no answer is shown by the model's own tests."""


@dataclass(frozen=True)
class CheckSample:
    """One prompt and, where it is known, the right answer."""

    prompt: EncodedPrompt
    answer: str | None


@dataclass
class Trace:
    """One answer with the numbers behind it."""

    token_ids: list[int]
    latent_steps: int
    halting: str
    logits: np.ndarray
    """After the prompt (W,)."""
    states: np.ndarray
    """After each latent step (T, D)."""
    replayed: list[list[int]]
    """Visual tokens per latent step."""
    passes: dict[int, int]
    """Extra passes per routed layer."""


@dataclass
class Found:
    """Differences collected over the samples."""

    logits: list[float] = field(default_factory=list)
    states: list[float] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)
    """Kind of difference -> where it was first seen."""
    same: dict[str, int] = field(default_factory=dict)
    """Kind -> samples without a difference."""
    right: dict[str, int] = field(default_factory=lambda: {"torch": 0, "program": 0})
    num_samples: int = 0
    num_answers: int = 0


def check_program(
    reasoner: LatentReasoner,
    processor: Processor,
    session: Any,
    spec: IoSpec,
    limits: Limits,
    role: Role,
    precision: Precision,
    samples: Sequence[CheckSample],
    progress: Callable[[int], None],
) -> Validation:
    """Runs both on `samples` (as the role asks: latents for `latent`, masked otherwise) and compares. `session` is what
    `open_program` or `open_steps` gave.

    Raises:
        ExportError: the program differs from torch by more than TOLERANCES allow; the message says in what, where
            first,
            and by how much.
    """
    found = Found(num_samples=len(samples))
    run = ProgramRun(session, spec, reasoner, processor, limits, role)
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        expected = torch_traces(reasoner, processor, [s.prompt for s in part], role, limits)
        for number, (sample, reference) in enumerate(zip(part, expected, strict=True), start):
            _compare(found, number, reference, run.trace(sample.prompt))
            _score(found, processor, sample, role, (reference, run.last))
        progress(min(start + BATCH, len(samples)))
    validation = _verdict(found, precision)
    if not validation.passed:
        raise ExportError(_complaint(found, validation, role))
    return validation


def open_program(file: Path, spec: IoSpec, optimizers_off: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session on the CPU, without the graph transformers named (see lrkit/runtime/ort.py).

    Raises:
        ExportError: the file has other inputs or outputs than `spec` declares.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(optimizers_off)
    )
    if wrong := spec.differences(session.get_inputs(), session.get_outputs()):
        raise ExportError(f"{file.name} is not the program it was built to be ({wrong[0]}); export it again")
    return session


def open_steps(
    folder: Path,
    steps: Mapping[StepName, StepEntry],
    whole: IoSpec,
    end_ids: Sequence[int],
    optimizers_off: Sequence[str] = (),
) -> StepSession:
    """The graphs of the form `step`, driven like one program. Raises as `open_program`."""
    sessions = {name: open_program(folder / entry.file, entry.spec, optimizers_off) for name, entry in steps.items()}
    return StepSession(sessions, {name: entry.spec for name, entry in steps.items()}, whole, end_ids)


class ProgramRun:
    """Answers prompts by a program in ONNX Runtime."""

    def __init__(
        self, session: Any, spec: IoSpec, reasoner: LatentReasoner, processor: Processor, limits: Limits, role: Role
    ) -> None:
        self.session, self.reasoner, self.processor, self.limits = session, reasoner, processor, limits
        self.role: Role = role
        self.names: list[str] = [output.name for output in spec.outputs]
        self.last: Trace

    def trace(self, prompt: EncodedPrompt) -> Trace:
        """The answer, with the bundle's default limits."""
        think = self.reasoner.settings.think
        feed = build_feed(
            prompt_ids(self.processor, prompt, self.role),
            prompt.grids,
            prompt.patches,
            image_id=self.processor.image_id,
            merge=self.processor.geometry.merge_size,
            patch_bytes=self.processor.geometry.patch_bytes,
            think=self.role == "latent",
            fixed_latents=think.halting == "fixed",
            max_latent_steps=min(think.max_latent_steps, self.limits.max_latent_steps),
            max_new_tokens=self.limits.max_new_tokens,
        )
        out: dict[str, np.ndarray] = dict(zip(self.names, self.session.run(self.names, feed), strict=True))
        steps = int(out["latent_steps"])
        replayed = [[int(i) for i in row if i >= 0] for row in out["replayed"][:steps]] if "replayed" in out else []
        layers = sorted(self.reasoner.routing)
        passes = dict(zip(layers, out["routed_depths"].sum(0).tolist(), strict=True)) if layers else {}
        self.last = Trace(
            out["token_ids"][: int(out["num_tokens"])].tolist(), steps, HALTING[int(out["halting"])],
            out["prefill_logits"], out["latent_states"][:steps] if steps else np.zeros((0, 0)), replayed, passes,
        )  # fmt: skip
        return self.last


def prompt_ids(processor: Processor, prompt: EncodedPrompt, role: Role) -> list[int]:
    """What the model reads: in the role `direct` the beginning of the answer too."""
    return prompt.ids + processor.answer_prefix_ids if role == "direct" else prompt.ids


class _Watched:
    """A reasoner that notes what `generate` does with it."""

    def __init__(self, reasoner: LatentReasoner) -> None:
        self._reasoner = reasoner
        self.logits_BW: Tensor
        self.states: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reasoner, name)

    def prefill(self, prompts: PromptBatch) -> Sequences:
        state = self._reasoner.prefill(prompts)
        self.logits_BW = self._reasoner.logits(state.last_hidden_BD)
        return state

    def think(self, state: Sequences, active_B: Tensor) -> Any:
        replayed = self._reasoner.think(state, active_B)
        self.states.append(state.last_hidden_BD)
        return replayed


def torch_traces(
    reasoner: LatentReasoner, processor: Processor, prompts: Sequence[EncodedPrompt], role: Role, limits: Limits
) -> list[Trace]:
    """The torch model's answers to a batch of prompts."""
    asked = [replace(prompt, ids=prompt_ids(processor, prompt, role)) for prompt in prompts]
    watched = _Watched(reasoner)
    most = min(reasoner.settings.think.max_latent_steps, limits.max_latent_steps)
    bounds = GenerationLimits(processor.eos_id, limits.max_new_tokens, most, more_ends=processor.end_ids[1:])
    mode: Mode = role
    batch = collate_prompts(asked, processor.pad_id)
    answers = generate(watched, batch, mode, bounds)  # pyright: ignore[reportArgumentType]
    return [_torch_trace(watched, answer, row) for row, answer in enumerate(answers)]


def _torch_trace(watched: _Watched, answer: Generated, row: int) -> Trace:
    steps = answer.latent_steps
    states = torch.stack([state[row] for state in watched.states[:steps]]) if steps else torch.zeros(0, 0)
    replayed = [[token.index for token in step] for step in answer.replayed]
    return Trace(
        answer.token_ids, steps, answer.halting, watched.logits_BW[row].float().numpy(), states.float().numpy(),
        replayed, answer.routed_depths,
    )  # fmt: skip


def _compare(found: Found, number: int, expected: Trace, seen: Trace) -> None:
    found.logits.append(relative_error(seen.logits, expected.logits))
    shared = min(len(seen.states), len(expected.states))
    if shared:
        found.states.append(relative_error(seen.states[:shared], expected.states[:shared]))
    for kind, ours, theirs in (
        ("latent steps", seen.latent_steps, expected.latent_steps),
        ("halting", seen.halting, expected.halting),
        ("replayed tokens", seen.replayed, expected.replayed or [[]] * len(seen.replayed)),
        ("extra passes", seen.passes, expected.passes),
        ("spoken tokens", seen.token_ids, expected.token_ids),
    ):
        same = ours == theirs
        found.same[kind] = found.same.get(kind, 0) + same
        if not same:
            found.first.setdefault(kind, f"sample {number}: {ours} where torch has {theirs}")


def relative_error(seen: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in units of the largest expected number (at least 1)."""
    return float(np.abs(seen - expected).max() / max(1.0, float(np.abs(expected).max())))


def _score(found: Found, processor: Processor, sample: CheckSample, role: Role, traces: tuple[Trace, Trace]) -> None:
    if sample.answer is None:
        return
    found.num_answers += 1
    for who, trace in zip(("torch", "program"), traces, strict=True):
        said = processor.format.find_answer(processor.decode(trace.token_ids), role)
        found.right[who] += said is not None and said.strip().casefold() == sample.answer.strip().casefold()


def _verdict(found: Found, precision: Precision) -> Validation:
    count, answers = max(1, found.num_samples), max(1, found.num_answers)
    agreement = {kind: same / count for kind, same in found.same.items()}
    measured: dict[str, Any] = {
        "prefill_logits": max(found.logits, default=0.0),
        "latent_states": max(found.states, default=0.0),
        "agreement": agreement,
        "accuracy_torch": found.right["torch"] / answers if found.num_answers else None,
        "accuracy_program": found.right["program"] / answers if found.num_answers else None,
    }
    allowed = TOLERANCES[precision]
    drop = (found.right["torch"] - found.right["program"]) / answers
    passed = drop <= allowed["accuracy_drop"]
    passed &= max(measured["prefill_logits"], measured["latent_states"]) <= allowed.get("numbers", np.inf)
    passed &= min(_bounded(agreement, precision), default=1.0) >= allowed.get("agreement", 0.0)
    return Validation(
        passed=bool(passed), num_samples=found.num_samples, tolerance=allowed, tolerance_reason=REASONS[precision],
        measured=measured,
    )  # fmt: skip


def _bounded(agreement: dict[str, float], precision: Precision) -> Iterable[float]:
    """In fp16 a near tie may replay or route another token without changing an answer: only answers are bounded."""
    return agreement.values() if precision == "fp32" else [agreement.get("spoken tokens", 1.0)]


def _complaint(found: Found, validation: Validation, role: Role) -> str:
    measured = validation.measured
    lines = [
        f"the {role} program differs from torch by more than {validation.tolerance}: {validation.tolerance_reason}"
    ]
    lines += [f"  {name}: relative error {measured[name]:.2e}" for name in ("prefill_logits", "latent_states")]
    lines += [f"  {kind}: first at {where}"[:300] for kind, where in found.first.items()]
    if measured["accuracy_torch"] is not None:
        lines.append(f"  right answers: {found.right['program']} of {found.num_answers}, torch {found.right['torch']}")
    return "\n".join([*lines, "nothing was written"])
