"""Where keys and values lie while an answer is computed: what the two layouts of the caches have in common.

    joined_caches.py     the prompt's keys and those of latent steps in one cache; what is spoken grows a second one
    separate_caches.py   a cache each, with room for all that may come

Place in the pipeline: read_prompt.py, think.py, speak.py and program.py ask a layout for whatever depends on it;
dialects.py says which a dialect takes. Caches are written in place by position; a state moves only while it is alive,
so that an engine that runs one iteration too many changes nothing: what it writes to a cache is not yet visible, and is
overwritten.

Legend: P prompt tokens, S tokens of a latent step, N columns of a cache, G key heads, W head width, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrkit.export.graph.latent_reports import Types
from lrkit.export.graph.layers import Mask, Past, Remember, Seen, Segment
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import Left, Spread
from lrkit.export.graph.replay_nodes import Prompt
from lrkit.export.graph.stack import BOOL, FLOAT32, INT64, Stack
from lrkit.export.graph.writer import Rotation

PastOf = Callable[[int], Past]
"""Layer -> keys that are read and not written."""


@dataclass(frozen=True)
class Read:
    """What the prompt leaves behind."""

    state: Carried
    prompt: Prompt
    keys: list[Value]
    """Per layer (1, G, P, W), as the values."""
    values: list[Value]
    rotation: Rotation
    left: Left | None = None
    """Which of its tokens the layers behind pruning hold keys of; None: all."""

    def num_keys(self, behind: bool) -> Value:
        """Keys of a layer up to the pruned one, or behind it: [1]."""
        return self.left.num_tokens if behind and self.left is not None else self.prompt.num_tokens


@dataclass(frozen=True)
class Places:
    """Where the tokens of a latent step go."""

    step: Value
    """Latent steps before this one, [1]."""
    where: Value
    """Indices (S, G, 1, 3) of the cache's rows to write."""
    mask: Mask
    rotation: Rotation
    routed_rotation: Rotation | None
    """The same as the routers read it; None where nothing routes."""
    behind: Mask | None = None
    """Of the layers behind pruning; None: as of the others."""


@dataclass(frozen=True)
class Latents:
    """What latent steps read of the prompt, and how they find their places."""

    prompt: Prompt
    past: PastOf
    place: Callable[[Graph, Carried, Value, Value | None], Places]
    """Of (graph, state, place of each token after the last key (S,), number of the iteration () in a loop)."""
    step: Callable[[Graph, Carried, Value | None], Value]
    """Of (graph, state, number of the iteration): the latent steps before this one, [1]."""
    spread: Spread | None = None
    """Where the columns of layers behind pruning lie among those of the others; None: both have the same."""


class Caches(ABC):
    """One layout of the caches of a program."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    # The prompt.

    def prompt_rotations(self, g: Graph, position: Value, after: Value) -> tuple[Rotation, Rotation | None]:
        """Of a prompt at `position` (3, P), with the next token at `after` [1]: for the layers, and as routers read
        it."""
        rotation = self.stack.decoder.prompt_rotation(g, position)
        return rotation, rotation

    @abstractmethod
    def widened(self, g: Graph, own: Value, kind: type) -> Value:
        """What each column of the prompt has, `own` (P,), with zeros of `kind` for the columns that are not its."""

    def prompt_spread(self, g: Graph, left: Left, prompt: Prompt) -> Spread:
        """While the prompt itself is read: its tokens that stay, among all."""
        return Spread(left.index, g.op("ConstantOfShape", prompt.num_tokens))

    @abstractmethod
    def step_spread(self, g: Graph, index: Value, prompt: Prompt) -> Spread:
        """In a latent step: the keys of those that stay, `index` (Q,), and of latent steps."""

    # The latent loop.

    @property
    @abstractmethod
    def columns(self) -> str:
        """Name of the axis of what latent steps select replayed tokens from."""

    @property
    @abstractmethod
    def room(self) -> int | str:
        """Columns of the cache that latent steps write."""

    @property
    def room_behind(self) -> int | str:
        """The same in the layers behind pruning."""
        return self.room

    @property
    @abstractmethod
    def counter_types(self) -> Types:
        """States of the latent loop beside those that every layout has."""

    @property
    @abstractmethod
    def report_types(self) -> Types:
        """Reports that are carried from step to step."""

    @property
    @abstractmethod
    def row_types(self) -> Types:
        """Reports of which each step makes a row, which the loop collects."""

    @property
    def think_types(self) -> Types:
        """States of the latent loop; some are absent where nothing is replayed or routed."""
        stack = self.stack
        types: Types = {"hidden": (stack.dialect.floats, (1, stack.dims.width))}
        types |= {"wants": (BOOL, (1,)), "length": (INT64, (1,))} | self.counter_types
        if stack.replay.slots:
            types |= {"saliency": (FLOAT32, (self.columns,)), "free": (BOOL, (self.columns,))}
        if stack.routers:
            types["routed_depths"] = (INT64, (stack.steps + 1, len(stack.routers)))
        types |= self.report_types | self.types(self.room, self.room_behind)
        for router in stack.routers.values():
            types |= router.state_types()
        return types

    @abstractmethod
    def begin(self, g: Graph, read: Read) -> tuple[Carried, Latents]:
        """Before the latent loop: its states beside those of the prompt, and what it reads."""

    @abstractmethod
    def moved(self, g: Graph, held: Carried, decided: Carried, ahead: Value) -> Carried:
        """What a latent step decided, and the counters, which it moves on by `ahead` [1] keys."""

    @abstractmethod
    def next_saliency(self, g: Graph, row: Value, prompt: Prompt) -> Value:
        """Of the columns that the next step selects from; `row` has all that this step attended to."""

    @abstractmethod
    def report(self, g: Graph, held: Carried, rows: Carried, step: Value) -> tuple[Carried, Carried]:
        """What becomes of the rows that `step` [1] reports: (states, rows that the loop collects)."""

    @abstractmethod
    def goes_on(self, g: Graph, held: Carried, new: Carried, wants: Value) -> Value:
        """Whether the loop takes another step, (), given whether the model `wants` one; noted in `new`."""

    @abstractmethod
    def finish(self, g: Graph, read: Read, state: Carried) -> Carried:
        """After the latent loop: what it left for now."""

    # The speech loop.

    @property
    @abstractmethod
    def speech_room(self) -> int | str:
        """Columns of the cache that spoken tokens write."""

    @property
    def speak_types(self) -> Types:
        """States of the speech loop."""
        return dict.fromkeys(("token", "position", "fed"), (INT64, (1,))) | self.types(self.speech_room)

    @abstractmethod
    def empty_speech(self, g: Graph) -> Carried:
        """Caches before the first spoken token."""

    @abstractmethod
    def context(self, g: Graph, read: Read, before: Carried) -> Callable[[Graph, Carried], PastOf]:
        """Prompt and latent keys as one read-only segment: a function of (graph, state) for the loop's body."""

    @abstractmethod
    def remember_spoken(self, g: Graph, held: Carried, new: Carried, past: PastOf) -> Callable[[int], Remember]:
        """By layer: where the keys of a spoken token go."""

    # What both are made with.

    def types(self, columns: int | str, behind: int | str | None = None) -> Types:
        """Keys and values that a loop writes; `behind`: columns in the layers behind pruning, None: as many."""
        dims, types = self.stack.dims, Types()
        for i in range(dims.num_layers):
            size = columns if behind is None or not self.stack.is_behind(i) else behind
            shape = (1, dims.num_key_heads, size, dims.head_width)
            types |= dict.fromkeys((f"key{i}", f"value{i}"), (self.stack.dialect.floats, shape))
        return types

    def empty(self, g: Graph, columns: int) -> Carried:
        """Caches without keys."""
        dims = self.stack.dims
        zeros = g.to_floats(g.op("ConstantOfShape", [1, dims.num_key_heads, columns, dims.head_width]))
        return dict.fromkeys(self.types(columns), zeros)

    def remember(
        self, g: Graph, layer: int, held: Carried, new: Carried, where: Value, past: Past, mask: Mask
    ) -> Remember:  # fmt: skip
        """Writes new keys into the loop's cache; earlier ones are read where they are."""

        def remember(key: Value, value: Value) -> Seen:
            for name, fresh in ((f"key{layer}", key), (f"value{layer}", value)):
                new[name] = g.op("ScatterND", held[name], where, fresh)
            own = Segment(new[f"key{layer}"], new[f"value{layer}"], mask)
            return Seen((*past.segments, own), past.lengths)

        return remember

    def step_mask(self, g: Graph, rows: Value) -> Mask:
        """Of a latent step, from rows (S, 1, 1, N)."""
        tokens = self.stack.step_tokens
        rows = g.op("Reshape", rows, [tokens, -1]) if self.stack.decoder.together(tokens) else rows
        return Mask(rows, rows if tokens == 1 else g.op("Gather", rows, [-1], axis=0))

    def turns(self, offsets: Value) -> Any:
        """Positions of a step's tokens after that of the first, (S,); `offsets` are their places."""
        return np.zeros(self.stack.step_tokens, np.int64) if self.stack.shares_positions else offsets

    def routed_rotation(self, g: Graph, position: Value) -> Rotation | None:
        """As the routers read it, of tokens at `position` (S,)."""
        stack = self.stack
        return stack.dialect.rotation(g, stack.decoder.angles(g, position)) if stack.routers else None
