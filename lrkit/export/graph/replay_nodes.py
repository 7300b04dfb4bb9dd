"""Visual replay in the graph (method section 3): which visual tokens come back before a latent, and with what weight.

Place in the pipeline: think.py calls `Replay.select` in every latent step.

Candidates are columns of the prompt, not visual tokens. So one graph serves any number of pictures, and none. Behind
the P columns stand K or more that are never free: TopK always finds K, and empty slots point at a harmless place.

With a fine source it is not the prompt's own token that comes back: the tower reads the window that the token covers in
the full picture, and all F tokens of it come back with that one's weight.

Legend: P prompt tokens, K selected tokens, R replayed ones (K, or F for each of K windows), E width of a visual token's
    row (`Dimensions.row_width`), V visual tokens of the prompt, M patches of a window, C bytes of a patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lrkit.contract.settings import ReplaySettings
from lrkit.contract.weightings import WEIGHTINGS
from lrkit.export.graph.nodes import Graph, Value
from lrkit.export.graph.table_rows import choice
from lrkit.export.graph.tower_writer import WindowTower
from lrkit.export.graph.writer import Writer
from lrkit.registry import load_object

INT64, FLOAT32 = ir.DataType.INT64, ir.DataType.FLOAT
LAST = np.array(2**31)
"""Where empty slots sort, behind all columns."""
TINY = np.array(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Prompt:
    """What latent steps read of the prompt."""

    rows: Value
    """(P, E), visual tokens in place: input embeddings, and what is added behind each deep layer."""
    visual_index: Value
    """(P,) int64: number of each visual token over all pictures; elsewhere meaningless."""
    num_tokens: Value
    """P, [1]."""
    windows: Value | None = None
    """(V, M, C) from `Writer.choosable`, where replay is fine: what each visual token covers in the full picture. At
    least one."""
    padded: bool = False
    """Whether `rows` and `visual_index` have rows of empty slots in front, zeros and -1, as joined caches have latent
    keys there: `select` counts columns from the first of them."""

    def pad(self, g: Graph, count: int, width: int) -> "Prompt":
        """The same with `count` such rows: made once before a loop, they spare every step to tell empty slots apart."""
        rows = g.op("Concat", np.zeros((count, width), g.floats.numpy()), self.rows, axis=0)
        index = g.op("Concat", np.full(count, -1), self.visual_index, axis=0)
        return replace(self, rows=rows, visual_index=index, padded=True)


@dataclass(frozen=True)
class Replayed:
    """What one latent step replays."""

    tokens: Value
    """(R, E), or (1, E) for soft_mix; empty slots hold an unread token."""
    valid: Value
    """(R,) or (1,) bool."""
    free: Value
    """(P + K,) bool: candidates left."""
    index: Value
    """(K,) int64 visual index, ascending; -1 where a slot is empty."""
    weights: Value
    """(K,) float32, 0 where a slot is empty."""


@dataclass(frozen=True)
class Weighting:
    """How a step's tokens are weighed: functions of (graph, dialect, scores, which are valid) that give float32, 0 in
    empty slots."""

    several: Callable[[Graph, Writer, Value, Value], Value]
    """(K,) for K above 1."""
    one: Callable[[Graph, Writer, Value, Value], Value]
    """What it gives for K = 1, in fewer nodes."""


def _ones(g: Graph, write: Writer, score: Value, valid: Value) -> Value:
    return g.cast(valid, FLOAT32)


def _softmax(g: Graph, write: Writer, score: Value, valid: Value) -> Value:
    """Eq. 6."""
    shares = write.softmax(g, g.op("Where", valid, score, np.array(-1e30, np.float32)))
    return g.op("Mul", shares, _ones(g, write, score, valid))


def _relative(g: Graph, write: Writer, score: Value, valid: Value) -> Value:
    ones = _ones(g, write, score, valid)
    score = g.op("Where", valid, score, np.array(0, np.float32))
    count = g.op("Max", g.op("ReduceSum", ones, [0], keepdims=1), np.array(1, np.float32))
    mean = g.op("Div", g.op("ReduceSum", score, [0], keepdims=1), count)
    return g.op("Div", score, g.op("Max", mean, TINY))


def _relative_one(g: Graph, write: Writer, score: Value, valid: Value) -> Value:
    """The weight stays 0 where the score is; an empty slot's is below."""
    return g.cast(g.op("Greater", score, np.array(0, np.float32)), FLOAT32)


SOFTMAX = Weighting(_softmax, _ones)
RELATIVE = Weighting(_relative, _relative_one)
ALIKE = Weighting(_ones, _ones)
FORMATIONS = {"tokens": False, "soft_mix": True}
"""`ReplaySettings.formation` -> whether a step's tokens are summed into one."""
SOURCES = {"prompt": False, "fine": True}
"""`ReplaySettings.source` -> whether the tower reads what is replayed in the full picture."""


@dataclass(frozen=True)
class Closer:
    """What reads windows of the full picture."""

    tower: WindowTower
    shape: tuple[int, int]
    """(M, C)."""
    tokens: int
    """F."""
    width: int
    """E."""


class Replay:
    """Selects, weighs and forms replayed tokens. `slots` is K, at most the visual tokens that a prompt may have.

    Raises:
        ExportError: a setting that no program can be built for.
    """

    def __init__(self, settings: ReplaySettings, slots: int, dialect: Writer, closer: Closer | None = None) -> None:
        """`closer` where the source is fine."""
        self.settings, self.slots, self.dialect, self.closer = settings, slots, dialect, closer
        row = choice(WEIGHTINGS, settings.weighting, "replay.weighting")
        self.weighting: Weighting = load_object(row.graph, f"replay weighting {settings.weighting}", Weighting)
        self.mixes = choice(FORMATIONS, settings.formation, "replay.formation")

    @property
    def num_tokens(self) -> int:
        """Tokens that a step replays: R, or 1 for soft_mix; 0 where replay is off."""
        return min(self.slots, 1) if self.mixes else self.slots * self.window

    @property
    def window(self) -> int:
        """Tokens that come back for each that is selected."""
        return 1 if self.closer is None else self.closer.tokens

    def select(self, g: Graph, prompt: Prompt, score: Value, free: Value) -> Replayed:
        """`score` float32 is the saliency a(t), `free` bool the candidates: of P + K columns or more, of which those of
        a padded prompt stand behind its empty slots."""
        ranked, index = g.ops("TopK", g.op("Where", free, score, np.array(-1, np.float32)), [self.slots], outputs=2)
        found = g.op("GreaterOrEqual", ranked, np.array(0, np.float32))
        # Empty slots point where nothing can be replayed: marking it visited changes nothing.
        blank = [0] if prompt.padded else prompt.num_tokens
        if self.slots == 1:  # one token needs no order, and weighs 1 against itself
            index = g.op("Where", found, index, blank)
            valid, weights = found, self.weighting.one(g, self.dialect, ranked, found)
        else:
            index, _ = g.ops("TopK", g.op("Where", found, index, LAST), [self.slots], outputs=2, largest=0)
            valid = g.op("Less", index, LAST)
            index = g.op("Where", valid, index, blank)
            weights = self.weighting.several(g, self.dialect, g.op("Gather", score, index), valid)
        free = g.op("ScatterElements", free, index, np.zeros(self.slots, bool), axis=0)
        place = index if prompt.padded else g.op("Where", valid, index, 0)
        visual = g.op("Gather", prompt.visual_index, place)
        visual = visual if prompt.padded else g.op("Where", valid, visual, -1)
        if self.closer is None:
            tokens = g.op("Gather", prompt.rows, place, axis=0)
        else:
            tokens = self._closer_look(g, self.closer, prompt, visual, valid)
        tokens, valid = self._formed(g, tokens, weights, valid)
        return Replayed(tokens, valid, free, visual, weights)

    def _closer_look(self, g: Graph, closer: Closer, prompt: Prompt, visual: Value, valid: Value) -> Value:
        """(R, E): the tower's rows of the windows `visual`."""
        assert prompt.windows is not None, "an input of the program"
        windows = prompt.windows

        def look(index: Value) -> Value:
            return closer.tower(g, self.dialect.chosen_pixels(g, windows, index))

        blank = np.zeros((self.slots * closer.tokens, closer.width))
        return self.dialect.of_valid(g, valid, g.op("Max", visual, [0]), look, blank)

    def _formed(self, g: Graph, tokens: Value, weights: Value, valid: Value) -> tuple[Value, Value]:
        """Tokens (R, E) with their weights, and which are real; or the one token that they are mixed into."""
        several = self.window > 1 and self.slots > 1
        spread = np.arange(self.slots).repeat(self.window)
        factors = g.to_floats(g.op("Gather", weights, spread) if several else weights)
        tokens = g.op("Mul", tokens, factors if self.slots == 1 else g.op("Unsqueeze", factors, [1]))
        if self.mixes:
            total = g.op("Max", g.op("ReduceSum", weights, [0], keepdims=1), TINY)
            if self.window > 1:
                total = g.op("Mul", total, np.array(self.window, np.float32))
            tokens = g.op("Div", g.op("ReduceSum", tokens, [0], keepdims=1), g.to_floats(total))
            return tokens, g.op("Slice", valid, [0], [1], [0])
        return tokens, valid if self.window == 1 else g.op("Gather", valid, spread)
