"""Proves a program equal to the torch model, or measures how far it is from it; part of every export.

Place in the pipeline: bundle.py writes a program. Torch answers samples that training did not see (`torch_answers`)
and is freed. Then the program answers them (`check_program`), so the two models are never in memory together.
check_verdict.py judges the differences.

What is compared per sample: logits after the prompt, every latent state, every replayed token, the number of latent
steps, the extra passes of routing, the spoken tokens. Where a tower chooses words, torch answers from those that the
program chose, and the share that it would have chosen otherwise is bounded by itself.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrkit.contract.bundle.io_spec import HALTING, LEFT, IoSpec
from lrkit.contract.bundle.manifest import Limits, Role, Validation
from lrkit.contract.generated import Generated, GenerationLimits, Mode
from lrkit.contract.schemes import Tolerance
from lrkit.contract.settings import ReasonerSettings
from lrkit.errors import ExportError, LrkitError, is_write_failure, one_line
from lrkit.export.before import Bounds
from lrkit.export.check_verdict import Found, judge
from lrkit.export.chosen_tokens import taken
from lrkit.export.loss_bound import judge_loss
from lrkit.export.near_words import BestWords, best_words, margin
from lrkit.export.sessions import refusal
from lrkit.model.generate import generate
from lrkit.model.read import Look
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.programs.feed import build_feed
from lrkit.runtime.engines.programs.looks import ProgramLooked, looked_from, outputs_left, whole_reports
from lrkit.runtime.engines.torch.prompt_batch import PromptBatch, collate_prompts

BEHIND = 10
"""Samples that are also asked behind a look at their pictures."""
BATCH = 25
"""Samples that torch answers at once; that batching changes no answer is shown by the model's own tests."""


CLOSED = 1e4
"""How far below the best a program's logit of a token must be that is never said; fp16 ends at 65,504."""


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
    otherwise: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Of each picture whose tokens were chosen: how many the program chose otherwise than torch, of how many."""
    best: list[BestWords] = field(default_factory=list[BestWords])
    """Torch's best words at each spoken step."""


def torch_answers(
    load: Callable[[], LatentReasoner],
    processor: Processor,
    samples: Sequence[CheckSample],
    role: Role,
    limits: Limits,
    progress: Callable[[int], None] = lambda done: None,
    chosen: Sequence[np.ndarray] | None = None,
) -> list[Trace]:
    """Returns what torch's model answers. The model is loaded here and freed before a program is opened.

    With `chosen` (chosen_tokens.py), torch answers from these visual tokens, and says how many it would have chosen
    otherwise.

    Raises:
        ExportError: torch cannot answer, as when the weights do not fit together.
    """
    traces: list[Trace] = []
    try:
        reasoner = load()
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            ids = None if chosen is None else chosen[start : start + BATCH]
            traces += torch_traces(reasoner, processor, [s.prompt for s in part], role, limits, ids)
            progress(len(traces))
        return traces
    except RuntimeError as error:  # torch's own class
        if isinstance(error, LrkitError) or is_write_failure(error):
            raise
        raise ExportError(
            f"torch cannot answer with the {role} model ({one_line(error)}); `lrkit validate` says what is wrong with "
            "a checkpoint"
        ) from error
    finally:
        reasoner = None  # of the cycles that hold a model too
        gc.collect()


def check_program(
    expected: Sequence[Trace],
    run: "ProgramRun",
    samples: Sequence[CheckSample],
    tolerance: Tolerance,
    *,
    rounded: bool = False,
    bounds: Bounds = Bounds(),
    progress: Callable[[int], None] = lambda done: None,
) -> Validation:
    """Runs a program on `samples` and compares it with what torch answered (`torch_answers`).

    The program's role says how it is asked: with latents for `latent`, with `<|latent|>` masked otherwise. `rounded`
    says that torch held the values that the program's integers stand for. `bounds` are those that the export was
    asked for.

    Raises:
        ExportError: the program differs from torch by more than `tolerance` or the bounds allow, or nothing is
            proven by these samples, and that is not allowed.
    """
    found = Found(num_samples=len(samples))
    for number, (sample, reference) in enumerate(zip(samples, expected, strict=True)):
        whole, ends = run.trace(sample.prompt), run.processor.end_ids
        _compare(found, number, reference, whole, ends)
        if run.looks and len(found.behind) < BEHIND and sample.prompt.picture_part:
            _compare_behind(found, number, reference, (whole, run.trace(run.looked(sample.prompt))), ends)
        _score(found, run.processor, sample, run.role, (reference, whole))
        progress(number + 1)
    if bounds.max_loss is not None:
        judge_loss(found.paired, bounds.max_loss, run.role)
    return judge(found, tolerance, run.role, rounded=rounded, allow_unproven=bounds.allow_unproven)


class ProgramRun:
    """Answers prompts by a program in the engine that it is meant for."""

    def __init__(
        self, session: Any, spec: IoSpec, settings: ReasonerSettings, layers: Sequence[int], processor: Processor,
        limits: Limits, role: Role, who: str = "ONNX Runtime",
    ) -> None:  # fmt: skip
        """`session` is what `Comparing.program` gave, of the engine `who`; `layers` are those that route."""
        self.who = who
        self.session, self.settings, self.processor, self.limits = session, settings, processor, limits
        self.layers, self.spec = sorted(layers), spec
        self.role: Role = role
        self.names = [output.name for output in spec.outputs if not output.name.startswith(LEFT)]
        self.looks = outputs_left(spec)

    def looked(self, prompt: EncodedPrompt) -> EncodedPrompt:
        """The same, to be asked behind a look at its pictures. Raises as `trace`."""
        ids = prompt.ids[: prompt.picture_part]
        feed = self._feed(ids, prompt, think=False, latents=0, tokens=1)
        found = dict(zip(self.looks, self._run(self.looks, feed), strict=True))
        return replace(prompt, looked=looked_from(self.spec, ids, found), patches=None)

    def trace(self, prompt: EncodedPrompt) -> Trace:
        """The answer, with the bundle's default limits.

        Raises:
            ExportError: the engine fails.
        """
        latents = min(self.settings.think.max_latent_steps, self.limits.max_latent_steps)
        ids, look = self.processor.asked_in(prompt, self.role).ids, prompt.looked
        feed = self._feed(ids, prompt, self.role == "latent", latents, self.limits.max_new_tokens)
        out: dict[str, np.ndarray] = dict(zip(self.names, self._run(self.names, feed), strict=True))
        if look is not None:
            assert isinstance(look, ProgramLooked)
            out = whole_reports(out, look)
        steps = int(out["latent_steps"])
        replayed = [[int(i) for i in row if i >= 0] for row in out["replayed"][:steps]] if "replayed" in out else []
        passes = dict(zip(self.layers, out["routed_depths"].sum(0).tolist(), strict=True)) if self.layers else {}
        return Trace(
            out["token_ids"][: int(out["num_tokens"])].tolist(), steps, HALTING[int(out["halting"])],
            out["prefill_logits"], out["latent_states"][:steps] if steps else np.zeros((0, 0)), replayed, passes,
        )  # fmt: skip

    def _feed(
        self, ids: Sequence[int], prompt: EncodedPrompt, think: bool, latents: int, tokens: int
    ) -> dict[str, np.ndarray]:
        look = prompt.looked
        assert look is None or isinstance(look, ProgramLooked)
        return build_feed(
            ids, prompt.grids, prompt.patches, geometry=self.processor.geometry, image_id=self.processor.image_id,
            think=think, fixed_latents=self.settings.think.halting == "fixed", max_latent_steps=latents,
            max_new_tokens=tokens, spec=self.spec, past=None if look is None else look.past, windows=prompt.windows,
        )  # fmt: skip

    def _run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> Sequence[Any]:
        try:
            return self.session.run(names, feed)
        except Exception as error:  # as above
            raise ExportError(refusal(f"cannot run the {self.role} program", error, self.who)) from error


class _Watched:
    """A reasoner that notes what `generate` does with it."""

    def __init__(self, reasoner: LatentReasoner) -> None:
        self._reasoner = reasoner
        self.logits_BW: Tensor
        self.states: list[Tensor] = []
        self._best: list[list[BestWords]] = []
        """By spoken step and sample."""
        self._next: list[BestWords] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reasoner, name)

    def read(self, prompts: PromptBatch, looks: Sequence[Look] | None = None) -> Sequences:
        state = self._reasoner.read(prompts, looks)
        self.logits_BW = self._reasoner.logits(state.last_hidden_BD)
        return state

    def logits(self, hidden_BD: Tensor) -> Tensor:
        logits_BW = self._reasoner.logits(hidden_BD)
        self._next = best_words(logits_BW, self._reasoner.latent.token_id)
        return logits_BW

    def speak(self, state: Sequences, *words: Tensor) -> Any:
        self._best.append(self._next)
        return self._reasoner.speak(state, *words)

    def best_of(self, row: int) -> list[BestWords]:
        """Of one sample, at each step that was spoken, and at the one after."""
        return [step[row] for step in [*self._best, self._next]]

    def think(self, state: Sequences, active_B: Tensor) -> Any:
        replayed = self._reasoner.think(state, active_B)
        self.states.append(state.last_hidden_BD)
        return replayed


def torch_traces(
    reasoner: LatentReasoner, processor: Processor, prompts: Sequence[EncodedPrompt], role: Role, limits: Limits,
    chosen: Sequence[np.ndarray] | None = None,
) -> list[Trace]:  # fmt: skip
    """The torch model's answers to a batch of prompts, whose visual tokens may be given (`chosen`, each (V,))."""
    asked = [processor.asked_in(prompt, role) for prompt in prompts]
    watched = _Watched(reasoner)
    most = min(reasoner.settings.think.max_latent_steps, limits.max_latent_steps)
    bounds = GenerationLimits(processor.eos_id, limits.max_new_tokens, most, more_ends=processor.end_ids[1:])
    mode: Mode = role
    batch = collate_prompts(asked, processor.pad_id)
    with taken(chosen, reasoner.backbone, batch, processor.geometry) as otherwise:
        answers = generate(watched, batch, mode, bounds)  # pyright: ignore[reportArgumentType]
    return [_torch_trace(watched, answer, row, otherwise[row]) for row, answer in enumerate(answers)]


def _torch_trace(watched: _Watched, answer: Generated, row: int, otherwise: list[tuple[int, int]]) -> Trace:
    steps = answer.latent_steps
    states = torch.stack([state[row] for state in watched.states[:steps]]) if steps else torch.zeros(0, 0)
    replayed = [[token.index for token in step] for step in answer.replayed]
    return Trace(
        answer.token_ids, steps, answer.halting, watched.logits_BW[row].float().numpy(), states.float().numpy(),
        replayed, answer.routed_depths, otherwise, watched.best_of(row),
    )  # fmt: skip


def _compare(found: Found, number: int, expected: Trace, seen: Trace, ends: Sequence[int] = ()) -> None:
    found.chosen += expected.otherwise
    found.logits.append(logits_error(seen.logits, expected.logits))
    shared = min(len(seen.states), len(expected.states))
    if shared:
        found.states.append(relative_error(seen.states[:shared], expected.states[:shared]))
    _by_phase(found, expected, seen, shared)
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
    if seen.latent_steps == expected.latent_steps and seen.token_ids != expected.token_ids:
        found.apart.append(margin(expected.best, expected.token_ids, seen.token_ids, expected.token_ids, ends))


def _by_phase(found: Found, expected: Trace, seen: Trace, shared: int) -> None:
    """The same in the norm that is reported by phase; of speech, how long the words are torch's."""
    open_W = expected.logits > np.finfo(np.float32).min
    found.phases.add("prompt.logits", seen.logits[open_W], expected.logits[open_W])
    for step in range(shared):
        found.phases.add(f"latent.{step + 1}", seen.states[step], expected.states[step])
    if shared and expected.latent_steps == seen.latent_steps:
        found.phases.add("latent.last", seen.states[-1], expected.states[-1])
    pairs = list(zip(seen.token_ids, expected.token_ids, strict=False))
    alike = next((place for place, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    longest = max(len(seen.token_ids), len(expected.token_ids))
    found.words.append(alike / longest if longest else 1.0)


def _compare_behind(
    found: Found, number: int, expected: Trace, traces: tuple[Trace, Trace], ends: Sequence[int] = ()
) -> None:
    """An answer behind a look, against torch's and against the one to the whole prompt. States behind another choice
    are not compared. `traces`: of the whole prompt, and behind the look."""
    whole, asked = traces
    chosen = ("latent_steps", "halting", "replayed", "passes", "token_ids")
    pairs = {kind: (getattr(asked, kind), getattr(whole, kind)) for kind in chosen}
    other = {kind: pair for kind, pair in pairs.items() if pair[0] != pair[1]}
    texts = [f"first in sample {number}, {kind}: {ours} for {theirs}" for kind, (ours, theirs) in other.items()]
    found.behind_otherwise += [text[:160] for text in texts[:1]]
    if list(other) == ["token_ids"]:
        found.behind_apart.append(margin(expected.best, expected.token_ids, *other["token_ids"], ends))
    for errors, reference in ((found.behind, whole), (found.behind_torch, expected)):
        shared = min(len(asked.states), len(reference.states)) if asked.replayed == reference.replayed else 0
        states = relative_error(asked.states[:shared], reference.states[:shared]) if shared else 0.0
        errors.append(max(logits_error(asked.logits, reference.logits), states))


def relative_error(seen: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, in units of the largest expected number (at least 1)."""
    return float(np.abs(seen - expected).max() / max(1.0, float(np.abs(expected).max())))


def logits_error(seen: np.ndarray, expected: np.ndarray) -> float:
    """The same for logits (W,), of the tokens that torch's head leaves open; infinite where the program has one that
    torch closes (`Backbone.head`) in reach of the best."""
    open_W = expected > np.finfo(np.float32).min
    if open_W.all():
        return relative_error(seen, expected)
    if seen[~open_W].max() > seen[open_W].max() - CLOSED:
        return float("inf")
    return relative_error(seen[open_W], expected[open_W])


def _score(found: Found, processor: Processor, sample: CheckSample, role: Role, traces: tuple[Trace, Trace]) -> None:
    if sample.answer is None:
        return
    found.num_answers += 1
    said = [processor.format.find_answer(processor.decode(trace.token_ids), role) for trace in traces]
    torch_right, program_right = (
        one is not None and one.strip().casefold() == sample.answer.strip().casefold() for one in said
    )
    found.right["torch"] += torch_right
    found.right["program"] += program_right
    found.paired.append((torch_right, program_right))
