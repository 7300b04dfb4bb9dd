"""Answers from a reasoner, batched and greedy: think while the model wants to, then speak (method section 1).

Modes, the result and how steps are counted: generated.py.
"""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lrkit.contract.carried import BeforeStep
from lrkit.contract.choice_speech import speak_choice
from lrkit.contract.choosing import Candidates, Scored
from lrkit.contract.generated import Generated, GenerationLimits, Halting, Mode, ReplayedToken
from lrkit.contract.stopwatch import Stopwatch
from lrkit.errors import UserError
from lrkit.model.carried_state import change
from lrkit.model.choose import TorchPlace
from lrkit.model.decoder import Asked
from lrkit.model.read import Look
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.recorded import StepRecorder
from lrkit.model.state import Sequences
from lrkit.model.steps import NO_WORD, PlainSteps, Steps


def not_finite(reasoner: LatentReasoner) -> UserError:
    """What to say where the model's numbers became NaN or infinite."""
    name = str(reasoner.backbone.embedding_rows().dtype).removeprefix("torch.")
    wider = "check its weights with `lrkit validate`" if name == "float32" else "ask in dtype float32"
    return UserError(f"the model's numbers became NaN or infinite in {name}; {wider}")


@dataclass(frozen=True)
class _Said:
    """The speech of a batch."""

    tokens: list[list[int]]
    """Per sample."""
    finished: list[bool]
    """Whether each ended itself."""
    passes: list[int]
    """Forward passes of each: its tokens fed back, and what scoring took."""
    scored: Scored | None = None
    """Of a batch of one, where choices were given."""


def _watch(device: torch.device) -> Stopwatch:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return Stopwatch(now)


@torch.inference_mode()
def generate(
    reasoner: LatentReasoner,
    prompts: Asked,
    mode: Mode,
    limits: GenerationLimits,
    on_token: Callable[[list[int | None]], None] | None = None,
    recorder: StepRecorder | None = None,
    between_steps: Callable[[], None] = lambda: None,
    looks: Sequence[Look] | None = None,
    before_step: BeforeStep | None = None,
    candidates: Candidates | None = None,
) -> list[Generated]:
    """Greedy answers for a batch of prompts, one per sample. `on_token` gets each new token per sample (None:
    stopped); `recorder` launches recorded steps instead of single operations. What `between_steps` raises ends it.
    With `looks`, one per sample, only what stands behind the picture parts is read. `before_step` sees, and may change,
    what each latent step starts from; steps are then not recorded. With `candidates` the answer to a batch of one is
    the most probable of these.

    Raises:
        UserError: the model's numbers become NaN or infinite, or `before_step` gives other shapes.
        DataError: one of `candidates` holds a token that the model has no row for.
    """
    if before_step is not None or candidates is not None:
        recorder = None  # a recording reads memory of its own
    with _in_use(reasoner):
        watch = _watch(prompts.input_ids.device)
        state = reasoner.read(prompts, looks)
        with _steps(reasoner, state, mode, limits, recorder) as steps:
            watch.lap("prefill")
            before = None if before_step is None else partial(change, state, before_step)
            halting = _think(reasoner, steps, len(prompts.prompt_mask), mode, limits, watch, between_steps, before)
            watch.lap("think")
            if candidates is None:
                said = _speak(reasoner, steps, len(halting), limits, watch, on_token, between_steps)
            else:
                said = _choose(reasoner, state, mode, limits, candidates, on_token, between_steps)
            watch.lap("speak")
    return _results(reasoner, state, said, halting, watch, prompts.prompt_mask.sum(1).tolist())


def _results(
    reasoner: LatentReasoner,
    state: Sequences,
    said: _Said,
    halting: list[Halting],
    watch: Stopwatch,
    prefilled: list[int],
) -> list[Generated]:
    latents = state.latent_steps_B.tolist()
    return [
        Generated(
            token_ids=said.tokens[i],
            latent_steps=latents[i],
            ar_steps=_passes(reasoner, latents[i]) + said.passes[i],
            halting=halting[i],
            finished=said.finished[i],
            prefilled_tokens=prefilled[i],
            replayed=_replayed(state, i, latents[i]),
            routed_depths=_routed_depths(state, i),
            routed_tokens=_routed_tokens(state, i, latents[i]),
            timings=watch.seconds,
            step_seconds=watch.steps,
            scored=said.scored,
            tokens_per_window=reasoner.settings.replay.fine_zoom**2,
        )
        for i in range(len(said.tokens))
    ]


@contextmanager
def _in_use(reasoner: LatentReasoner) -> Generator[None]:
    """Not in training: without dropout."""
    training = reasoner.training
    if training:  # walking all modules costs as much as a latent step of a small model
        reasoner.eval()
    try:
        yield
    finally:
        if training:
            reasoner.train()


def _steps(
    reasoner: LatentReasoner, state: Sequences, mode: Mode, limits: GenerationLimits, recorder: StepRecorder | None
) -> AbstractContextManager[Steps]:
    if recorder is None:
        return nullcontext(PlainSteps(reasoner, state))
    return recorder.steps(state, _most_latents(reasoner, limits) if mode == "latent" else 0, limits.max_new_tokens)


def _at_once(reasoner: LatentReasoner) -> bool:
    return reasoner.settings.think.latents == "parallel"


def _passes(reasoner: LatentReasoner, latent_steps: int) -> int:
    """Forward passes of so many latent steps, one after the other."""
    return min(latent_steps, reasoner.settings.think.passes) if _at_once(reasoner) else latent_steps


def _most_latents(reasoner: LatentReasoner, limits: GenerationLimits) -> int:
    return reasoner.settings.think.max_latent_steps if limits.max_latent_steps is None else limits.max_latent_steps


def _think(
    reasoner: LatentReasoner,
    steps: Steps,
    batch: int,
    mode: Mode,
    limits: GenerationLimits,
    watch: Stopwatch,
    between_steps: Callable[[], None],
    before: Callable[[int, Tensor], None] | None,
) -> list[Halting]:
    """Latent steps until every sample has stopped; says why each stopped."""
    if mode != "latent":
        return ["off"] * batch
    most = _most_latents(reasoner, limits)
    fixed = (limits.halting or reasoner.settings.think.halting) == "fixed"
    if _at_once(reasoner):
        _think_at_once(reasoner, steps, batch, most, fixed, between_steps, before)
        return ["fixed"] * batch
    active_B = torch.ones(batch, dtype=torch.bool, device=reasoner.latent.norm.device)
    for step in range(most + 1):
        if not fixed:
            active_B = active_B & steps.wants_to_think()
        if step == most or not bool(active_B.any()):
            break
        between_steps()
        if before is not None:
            before(step + 1, active_B)
        steps.think(active_B)
        watch.step("think")
    if fixed:
        return ["fixed"] * batch
    return ["limit" if still else "decided" for still in active_B.tolist()]


def _think_at_once(
    reasoner: LatentReasoner,
    steps: Steps,
    batch: int,
    count: int,
    fixed: bool,
    between_steps: Callable[[], None],
    before: Callable[[int, Tensor], None] | None,
) -> None:
    if not fixed:
        raise UserError(
            "halting is adaptive, but this model takes all its latents at once (think.latents: parallel) and cannot "
            "stop between them; leave halting out, or set it to fixed"
        )
    between_steps()
    count_B = torch.full((batch,), count, device=reasoner.latent.norm.device)
    if before is not None and count:
        before(1, count_B > 0)  # there is no other moment between steps
    steps.think_at_once(count_B)


def _speak(
    reasoner: LatentReasoner,
    steps: Steps,
    batch: int,
    limits: GenerationLimits,
    watch: Stopwatch,
    on_token: Callable[[list[int | None]], None] | None,
    between_steps: Callable[[], None],
) -> _Said:
    """Greedy tokens until the end token."""
    spoken: list[list[int]] = [[] for _ in range(batch)]
    fed = [0] * batch
    going = [True] * batch
    going_B: Tensor | bool = True
    for count in range(limits.max_new_tokens):
        between_steps()
        token_B = steps.next_token()
        going_B = (token_B != limits.eos_id) & going_B
        for end in limits.more_ends:
            going_B = (token_B != end) & going_B
        going, tokens = going_B.tolist(), token_B.tolist()
        if any(on and token == NO_WORD for on, token in zip(going, tokens, strict=True)):
            raise not_finite(reasoner)
        for i in range(batch):
            if going[i]:
                spoken[i].append(tokens[i])
        if any(going):
            watch.step("speak")
        if on_token is not None:
            on_token([tokens[i] if going[i] else None for i in range(batch)])
        if not any(going) or count + 1 == limits.max_new_tokens:
            break
        steps.speak(token_B, going_B)
        fed = [number + int(on) for number, on in zip(fed, going, strict=True)]
    return _Said(spoken, [not on for on in going], fed)


def _choose(
    reasoner: LatentReasoner,
    state: Sequences,
    mode: Mode,
    limits: GenerationLimits,
    candidates: Candidates,
    on_token: Callable[[list[int | None]], None] | None,
    between_steps: Callable[[], None],
) -> _Said:
    """Speech of one sample that ends with the most probable candidate."""
    start = TorchPlace(reasoner, state, between_steps, not_finite)
    found = speak_choice(start, mode, limits.max_new_tokens, candidates)
    spoken = found.before + found.chosen
    if on_token is not None:
        for token in spoken:
            on_token([token])
    return _Said([spoken], [True], [found.passes], found.scored)


def _replayed(state: Sequences, sample: int, latent_steps: int) -> list[list[ReplayedToken]]:
    """The first `latent_steps` replays are the sample's own: a sample that has stopped thinks no more."""
    steps: list[list[ReplayedToken]] = []
    for found in state.replays[:latent_steps]:
        pairs = zip(
            found.index_BK[sample].tolist(),
            found.weight_BK[sample].tolist(),
            strict=True,
        )
        steps.append([ReplayedToken(int(index), float(weight)) for index, weight in pairs if index >= 0])
    # Nothing is kept without images and with replay off, and one replay serves all latents that are taken at once.
    return [*steps, *([] for _ in range(latent_steps - len(steps)))]


def _routed_depths(state: Sequences, sample: int) -> dict[int, int]:
    depths: dict[int, int] = {}
    for routed in state.refinement.log:
        depths[routed.layer] = depths.get(routed.layer, 0) + int(routed.depth_BA[sample].sum())
    return depths


def _routed_tokens(state: Sequences, sample: int, latent_steps: int) -> dict[int, list[list[int]]]:
    """Passes by layer, chunk and real token; chunks after the sample's last latent step are other samples'. Both parts
    of the prompt are one chunk."""
    found: dict[int, dict[int, list[int]]] = {}
    for routed in state.refinement.log:
        if routed.chunk > latent_steps:
            continue
        passes_S = torch.zeros_like(routed.real_BS[sample], dtype=torch.long)
        chosen_A = routed.index_BA[sample] >= 0
        passes_S[routed.index_BA[sample][chosen_A]] = routed.depth_BA[sample][chosen_A]
        chunks = found.setdefault(routed.layer, {})
        chunks.setdefault(routed.chunk, []).extend(passes_S[routed.real_BS[sample]].tolist())
    return {layer: list(chunks.values()) for layer, chunks in found.items()}
