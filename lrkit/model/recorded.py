"""Steps recorded once per shape and launched as one: CUDA graphs, for GPUs that finish a kernel sooner than Python
starts the next.

Place in the pipeline: runtime/engines/torch/engine.py owns a `StepRecorder` -> generate.py asks it for `Steps` on a
prefilled state. The prompt is not recorded, because its shape is new with every question.

A recorded step reads and writes the same memory each time. So keys have room for the whole answer (keys.py), the number
of visual tokens and of replay slots is fixed, and what a step computes is copied back into the tensors it was computed
from. On a CPU the same work is run unrecorded, which is how tests compare it with plain steps.

Legend: B batch, V visual tokens, D width.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lrkit.errors import UserError
from lrkit.model.keys import GrowingKeys, Keys, StaticKeys
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.replay import Replay
from lrkit.model.routing import RefinementState, RoutedTokens
from lrkit.model.state import Pruned, Sequences
from lrkit.model.steps import next_token, wants_to_think

KEPT = 4
"""Shapes kept recorded; each holds keys of its size. The one not asked for longest goes first."""
NOT_AT_ONCE = (
    "cuda_graphs is on and think.latents is parallel: all latents are one chunk, and one latent step is recorded; "
    "leave cuda_graphs out"
)
_COLUMNS, _VISUAL = 256, 64
"""Sizes are rounded up to multiples of these, so that questions of like lengths share a recording."""
_CARRIED = ("next_position_B", "last_hidden_BD", "saliency_BV", "visited_BV", "latent_steps_B")
"""Of a state: what a step hands to the next. All that a step replaces must be here: a recording keeps reading the
memory of the first tensor, whoever owns it by then."""

_PER_TOKEN = ("rows_BVE", "real_BV", "column_BV")
"""Of the visual tokens. Windows are not recorded: the tower cannot be."""


@dataclass(frozen=True)
class Sizes:
    """The shape of a recording."""

    batch: int
    columns: int
    """Keys: prompt, latent chunks, speech."""
    pruned: tuple[int, int] | None
    """(first layer behind pruning, keys of it and of those that follow)."""
    visual: int | None
    """Visual tokens; None without pictures."""
    slots: int
    """Replayed tokens of a latent step."""
    refined: tuple[tuple[int, int], ...]
    """(layer, keys of each of its depths) where routing is on."""


def sizes_of(reasoner: LatentReasoner, state: Sequences, latent_steps: int, spoken: int) -> Sizes:
    """Of an answer with at most that many latent steps and spoken tokens."""
    # One of each is run before it is recorded, whether the answer will take any or not.
    latent_steps, spoken = max(latent_steps, 1), max(spoken, 1)
    prompt, first = _num_columns(state.keys), reasoner.backbone.num_layers
    left = prompt
    if state.pruned is not None:
        left, first = _num_columns(state.pruned.keys), state.pruned.first_layer
    tokens = 0 if state.visual is None else state.visual.real_BV.shape[1]
    slots = min(reasoner.settings.replay.num_tokens, tokens)
    chunk = 1 + (min(slots, 1) if reasoner.settings.replay.formation == "soft_mix" else slots)
    refined: list[tuple[int, int]] = []
    for layer, router in reasoner.routing.items():
        # Twice: the prompt's two parts are routed apart.
        before = 2 * min(router.alpha, prompt if layer < first else left)
        refined.append((layer, _up(before + latent_steps * min(router.alpha, chunk), _VISUAL)))
    columns, behind = (_up(before + latent_steps * chunk + spoken, _COLUMNS) for before in (prompt, left))
    visual = None if state.visual is None else _up(tokens, _VISUAL)
    pruned = None if state.pruned is None else (first, behind)
    return Sizes(len(state.last_hidden_BD), columns, pruned, visual, slots, tuple(refined))


class RecordedSteps:
    """`Steps` of one shape; `load` begins an answer."""

    def __init__(self, reasoner: LatentReasoner, like: Sequences, sizes: Sizes) -> None:
        """`like` is any prefilled state of that shape, for number types and the device."""
        self._reasoner = reasoner
        self._answer = like
        hidden = like.last_hidden_BD
        self._active_B = torch.ones(sizes.batch, dtype=torch.bool, device=hidden.device)
        self._token_B = torch.zeros(sizes.batch, dtype=torch.long, device=hidden.device)
        self._wants_B, self._next_B = self._active_B.clone(), self._token_B.clone()
        self._decided = False
        self._found: tuple[list[Replay], list[RoutedTokens]] = ([], [])
        self._state = _buffers(reasoner, like, sizes)
        self._pool: Any = torch.cuda.graph_pool_handle() if hidden.is_cuda else None
        self.load(like)
        self._run_think = self._record(self._think)
        self._run_speak = self._record(self._speak)
        self._run_decide = self._record(self._decide)

    def load(self, answer: Sequences) -> None:
        """Begins with a prefilled state. Replays, routed tokens and latent steps are noted in it, as plain steps do."""
        self._answer, self._decided, state = answer, False, self._state
        assert isinstance(state.keys, StaticKeys) and isinstance(answer.keys, GrowingKeys)
        state.keys.load(answer.keys)
        if state.pruned is not None and answer.pruned is not None:
            assert isinstance(state.pruned.keys, StaticKeys) and isinstance(answer.pruned.keys, GrowingKeys)
            state.pruned.keys.load(answer.pruned.keys)
            _fill(state.pruned.kept_BV, answer.pruned.kept_BV, 0)
            _fill(state.pruned.column_BV, answer.pruned.column_BV, 0)
        for at, keys in state.refinement.keys.items():
            found = answer.refinement.keys.get(at)
            assert isinstance(keys, StaticKeys) and (found is None or isinstance(found, GrowingKeys))
            keys.load(found)
        for layer, count in state.refinement.num_routed.items():
            count.copy_(answer.refinement.num_routed.get(layer, torch.zeros_like(count)))
        for name in _CARRIED:
            _fill(getattr(state, name), getattr(answer, name), name == "visited_BV")
        if state.visual is not None and answer.visual is not None:
            for name in _PER_TOKEN:
                _fill(getattr(state.visual, name), getattr(answer.visual, name), 0)

    def think(self, active_B: Tensor) -> None:
        self._active_B.copy_(active_B)
        self._run_think()
        replays, routed = self._found
        answer = self._answer
        # Copied: the next step writes over them.
        answer.replays += [replace(found, **_copies(found)) for found in replays]
        answer.refinement.log += [replace(found, chunk=answer.num_chunks, **_copies(found)) for found in routed]
        answer.num_chunks += bool(self._reasoner.routing)
        answer.latent_steps_B = answer.latent_steps_B + active_B
        self._decided = False

    def think_at_once(self, count_B: Tensor) -> None:
        raise UserError(NOT_AT_ONCE)

    def speak(self, token_B: Tensor, going_B: Tensor) -> None:
        self._token_B.copy_(token_B)
        self._active_B.copy_(going_B)
        self._run_speak()
        self._decided = False

    def wants_to_think(self) -> Tensor:
        self._decide_once()
        return self._wants_B

    def next_token(self) -> Tensor:
        self._decide_once()
        return self._next_B

    def _decide_once(self) -> None:
        if not self._decided:
            self._run_decide()
        self._decided = True

    # ---- what is recorded ------------------------------------------------------------------------------------------

    def _think(self) -> None:
        state = self._state
        state.replays.clear()
        state.refinement.log.clear()
        routed = dict(state.refinement.num_routed)
        with self._kept():
            self._reasoner.think(state, self._active_B)
        for layer, count in routed.items():
            state.refinement.num_routed[layer] = count.copy_(state.refinement.num_routed[layer])
        self._found = list(state.replays), list(state.refinement.log)

    def _speak(self) -> None:
        with self._kept():
            self._reasoner.speak(self._state, self._token_B[:, None], self._active_B[:, None])

    def _decide(self) -> None:
        logits_BW = self._reasoner.logits(self._state.last_hidden_BD)
        self._wants_B.copy_(wants_to_think(self._reasoner, logits_BW))
        self._next_B.copy_(next_token(self._reasoner, logits_BW))

    @contextmanager
    def _kept(self) -> Generator[None]:
        """What the step leaves in the state goes back into the tensors that the next step reads."""
        before = {name: getattr(self._state, name) for name in _CARRIED}
        yield
        for name, buffer in before.items():
            after = getattr(self._state, name)
            if after is not buffer:
                setattr(self._state, name, buffer.copy_(after))

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self._pool is None:
            return work
        device = self._active_B.device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                work()  # kernels are chosen and loaded at a first run, which cannot be recorded
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
        return graph.replay


class StepRecorder:
    """Recorded steps by shape. One answer at a time: a recording's memory serves one."""

    def __init__(self, reasoner: LatentReasoner) -> None:
        self._reasoner = reasoner
        self._recorded: OrderedDict[Sizes, RecordedSteps] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def steps(self, state: Sequences, latent_steps: int, spoken: int) -> Generator[RecordedSteps]:
        """Steps on a prefilled state, for at most that many latent steps and spoken tokens; records a new shape."""
        sizes = sizes_of(self._reasoner, state, latent_steps, spoken)
        with self._lock:
            steps = self._recorded.pop(sizes, None)
            if steps is None:
                while len(self._recorded) >= KEPT:
                    self._recorded.popitem(last=False)
                steps = RecordedSteps(self._reasoner, state, sizes)
            self._recorded[sizes] = steps
            steps.load(state)
            yield steps


def _buffers(reasoner: LatentReasoner, like: Sequences, sizes: Sizes) -> Sequences:
    """A state of that shape, of zeros."""
    assert isinstance(like.keys, GrowingKeys)
    key = like.keys.of_layer(0)[0]
    refinement = RefinementState(like.refinement.make_rotary, may_stop_early=False)
    for layer, capacity in sizes.refined:
        for depth in range(reasoner.settings.routing.depth):
            refinement.keys[layer, depth] = StaticKeys([layer], key, capacity)
        refinement.num_routed[layer] = torch.zeros(sizes.batch, 1, dtype=torch.long, device=key.device)
    layers, pruned = range(reasoner.backbone.num_layers), None
    if like.pruned is not None and sizes.pruned is not None:
        first, columns = sizes.pruned
        masks = (_wider(values, sizes.visual) for values in (like.pruned.kept_BV, like.pruned.column_BV))
        layers, pruned = layers[:first], Pruned(StaticKeys(layers[first:], key, columns), first, *masks)
    state = replace(
        like,
        keys=StaticKeys(layers, key, sizes.columns),
        pruned=pruned,
        refinement=refinement,
        visual=None if like.visual is None else replace(
            like.visual, **{name: _wider(getattr(like.visual, name), sizes.visual) for name in _PER_TOKEN}
        ),
        replays=[],
        replay_slots=sizes.slots,
        num_chunks=0,
    )  # fmt: skip
    for name in _CARRIED:
        value: Tensor | None = getattr(like, name)
        per_token = name in ("saliency_BV", "visited_BV")
        setattr(state, name, value if value is None else _wider(value, sizes.visual if per_token else None))
    return state


def _wider(like: Tensor, size: int | None) -> Tensor:
    """Zeros like `like`, its second axis `size` long."""
    return torch.zeros_like(like) if size is None else like.new_zeros(len(like), size, *like.shape[2:])


def _fill(buffer: Tensor | None, values: Tensor | None, rest: float) -> None:
    """`values`, and `rest` where the buffer is longer."""
    if buffer is None or values is None:
        return
    buffer.fill_(rest)
    buffer[tuple(slice(size) for size in values.shape)] = values


def _copies(found: Any) -> dict[str, Tensor]:
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}


def _num_columns(keys: Keys) -> int:
    assert isinstance(keys, GrowingKeys) and keys.valid_BN is not None
    return keys.valid_BN.shape[1]


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
