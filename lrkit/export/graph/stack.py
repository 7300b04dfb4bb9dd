"""What the prompt, a latent step and a spoken token have in common: the sizes of a program, all layers with their
routing, and the head.

Place in the pipeline: read_prompt.py, think.py and speak.py run a `Stack`; program.py puts them into loops,
step_graphs.py into graphs of their own that a host drives.

Legend: P prompt tokens, S tokens of a chunk, D width, E width of a visual token's row (`Dimensions.row_width`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from lrkit.contract.bundle.io_spec import LookShape, ProgramShape
from lrkit.contract.bundle.manifest import Limits
from lrkit.contract.schemes import MANY
from lrkit.export.graph.latent_input import check_latents
from lrkit.export.graph.latent_reports import LatentReports
from lrkit.export.graph.layers import Decoder, Hidden, Remember
from lrkit.export.graph.nodes import Carried, Graph, Value
from lrkit.export.graph.pruning_nodes import BEHIND, Left, Pruning, Spread, pruned_saliency
from lrkit.export.graph.replay_nodes import SOURCES, Closer, Replay
from lrkit.export.graph.routing_nodes import Refined, Router
from lrkit.export.graph.table_rows import choice
from lrkit.export.graph.tower_writer import write_window_tower
from lrkit.export.graph.writer import Rotation, Writer
from lrkit.export.weights.source import HEAD_ROW, Source
from lrkit.families.protocols import Geometry

FLOAT32, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
SHARED = {"consecutive": False, "shared": True}
"""`ReplaySettings.positions` -> whether a step's tokens share the latent's position."""


@dataclass(frozen=True)
class Chunk:
    """Tokens that go through all layers together: the prompt, or those of a latent step."""

    embeds: Value
    """(S, D)."""
    rotation: Rotation
    routed_rotation: Rotation | None
    """The same as the routers read it; None where nothing routes."""
    remember: Callable[[int, Left | None], Remember]
    """By layer, and who is left where some tokens of the chunk have been pruned: where new keys go."""
    refined: dict[int, Refined]
    """By routed layer: its cache."""
    valid: Value | None = None
    """Which tokens are real, (S,); None: all are."""
    step: Value | None = None
    """Latent steps before this one, [1]; None: the chunk is the prompt."""
    deep: Mapping[int, Value] = field(default_factory=dict[int, Value])
    """By deep layer: what the tokens add behind it, (S, D)."""
    parts: Value | None = None
    """Of the prompt, where something routes: which tokens its picture part and its question part have, (2, S)."""
    pruning: Pruning | None = None
    """Of the prompt, where visual tokens are pruned."""

    def of(self, g: Graph, left: Left) -> "Chunk":
        """Behind pruning: the tokens that stay."""
        return replace(
            self,
            rotation=self.rotation.rows(g, left.index),
            routed_rotation=None if self.routed_rotation is None else self.routed_rotation.rows(g, left.index),
            parts=None if self.parts is None else g.op("Gather", self.parts, left.index, axis=1),
            deep={layer: g.op("Gather", added, left.index, axis=0) for layer, added in self.deep.items()},
        )


@dataclass(frozen=True)
class Passed:
    """What the layers made of a chunk."""

    hidden: Value
    """The last token's state after the final norm, (1, D)."""
    refined: dict[int, Refined]
    passes: list[Value]
    """By routed layer: extra passes of each token, (S,)."""
    left: Left | None = None
    """Which tokens of the prompt stay; None where none is pruned."""


class Stack:
    """The layers of one reasoner, and the sizes of its program."""

    def __init__(self, source: Source, dialect: Writer, limits: Limits, geometry: Geometry) -> None:
        """`geometry` is the family's: how the pictures of its prompts are cut."""
        self.source, self.dialect, self.limits, self.geometry = source, dialect, limits, geometry
        self.dims, self.settings = source.dimensions, source.settings
        self.decoder = Decoder(self.dims, dialect)
        self.scenes = dialect.target.scenes and not self.settings.prune.active
        """Whether programs look and ask apart. A look does not know the question, which says who is pruned."""
        self.tells_logits = dialect.target.logits
        """Whether steps give the logits of the next word."""
        self.steps = limits.max_latent_steps
        # More slots than a prompt can have visual tokens would always stay empty.
        most_visual = max(1, limits.max_patches // geometry.patches_per_token)
        slots = min(self.settings.replay.num_tokens, most_visual) if self.steps else 0
        fine = choice(SOURCES, self.settings.replay.source, "replay.source") and slots > 0
        self.replay = Replay(self.settings.replay, slots, dialect, self._closer() if fine else None)
        self.step_tokens = self.replay.num_tokens + 1
        """Tokens of a latent step: those replayed, and the latent."""
        # TopK must find K columns whatever the prompt, also where the K tokens are mixed into one.
        self.capacity = max(self.steps * self.step_tokens, slots)
        """Cache slots of all latent steps."""
        check_latents(self.settings.think)
        self.shares_positions = choice(SHARED, self.settings.replay.positions, "replay.positions")
        routing, tokens = self.settings.routing, self.step_tokens
        layers = routing.chosen_layers(self.dims.num_layers)
        self.routers = {i: Router(self.decoder, routing, i, tokens, self.steps) for i in layers}
        self.reports = LatentReports(self.steps, self.dims.width, slots, len(self.routers), tokens)

    @property
    def shape(self) -> ProgramShape:
        """What fixes the inputs and outputs."""
        return ProgramShape(
            prompt_inputs=self.geometry.program_inputs, vocabulary=self.dims.vocabulary, width=self.dims.width,
            max_latent_steps=self.steps, max_new_tokens=self.limits.max_new_tokens, replay_slots=self.replay.slots,
            routed_layers=tuple(self.routers), latent_chunk=self.step_tokens, look=self.look,
            window=None if self.replay.closer is None else self.replay.closer.shape,
        )  # fmt: skip

    @property
    def look(self) -> LookShape | None:
        """What a look leaves; None for a program without scenes."""
        dims, routers = self.dims, self.routers.values()
        if not self.scenes:
            return None
        return LookShape(
            floats="float16" if self.dialect.target.computes_fp16 else "float32", num_layers=dims.num_layers,
            num_key_heads=dims.num_key_heads, head_width=dims.head_width,
            row_width=dims.row_width if self.replay.slots else 0,
            depth=self.settings.routing.depth if routers else 0,
            refined=max((router.alpha for router in routers), default=0),
        )  # fmt: skip

    @property
    def columns(self) -> str:
        """Name of the axis that counts the keys of the prompt, with those of an earlier look."""
        return "L+P" if self.scenes else "P"

    def columns_of(self, layer: int) -> str:
        """The same of one layer, without what was pruned."""
        return BEHIND if self.is_behind(layer) else self.columns

    def _closer(self) -> Closer:
        """Raises as `write_window_tower`."""
        geometry = self.geometry
        tower = write_window_tower(self.source, geometry, self.dialect)
        patches, tokens = geometry.num_patches(geometry.window_grid), geometry.num_visual_tokens(geometry.window_grid)
        return Closer(tower, (patches, geometry.patch_bytes), tokens, self.dims.row_width)

    def run(self, g: Graph, chunk: Chunk) -> Passed:
        """All layers over the prompt or a latent step, with routing. Where latent steps replay, attention is watched
        for `Decoder.take_saliency`."""
        hidden, refined, passes = Hidden(chunk.embeds), dict(chunk.refined), []
        last = self.dims.num_layers - 1
        by_token = chunk.step is not None
        single = by_token and self.step_tokens == 1
        together = by_token and self.decoder.together(self.step_tokens)
        many = not by_token or self.step_tokens >= MANY
        # Only the last token of the last layer is ever read, unless that layer routes.
        shortened = last not in self.routers and not single
        left: Left | None = None
        for i in range(self.dims.num_layers):
            with g.scope(f"layer{i}"):
                watch = self.replay.slots > 0 or (chunk.pruning is not None and not self.is_behind(i))
                only_last, remember = shortened and i == last, chunk.remember(i, left)
                hidden = self.decoder.layer(
                    g, i, hidden, chunk.rotation, remember, by_token, only_last, watch, together, many
                )  # fmt: skip
                if i in self.routers:
                    assert chunk.routed_rotation is not None
                    routed = self.routers[i].route(
                        g, hidden.close(g), chunk.valid, chunk.routed_rotation, refined[i], chunk.step, chunk.parts
                    )  # fmt: skip
                    hidden, refined[i] = Hidden(routed.hidden), routed.cache
                    passes.append(routed.passes if left is None else self._placed(g, chunk, left, routed.passes))
                if i in chunk.deep:  # once, behind the routing: refined passes are of the layer's own output
                    added = chunk.deep[i]
                    added = g.op("Gather", added, [-1], axis=0) if only_last else added
                    hidden = Hidden(hidden.close(g), added)
            if chunk.pruning is not None and self.is_behind(i + 1) and left is None:
                with g.scope("prune"):
                    left = chunk.pruning.choose(g, self.decoder, self.decoder.rows)
                    hidden, chunk = Hidden(g.op("Gather", hidden.close(g), left.index, axis=0)), chunk.of(g, left)
        if last in self.routers and not single:
            hidden = Hidden(g.op("Gather", hidden.close(g), [-1], axis=0))
        return Passed(hidden.norm(g, self.dialect, "norm"), refined, passes, left)

    def is_behind(self, layer: int) -> bool:
        """Whether a layer lies behind pruning."""
        prune = self.settings.prune
        return prune.active and prune.after_layer is not None and layer > prune.after_layer

    def saliency(self, g: Graph, spread: Spread | None) -> Value:
        """Of the columns that the chunk that was run last saw, (N,)."""
        if spread is None:
            return self.decoder.take_saliency(g)
        first = sum(not self.is_behind(i) for i in range(self.dims.num_layers))
        return pruned_saliency(g, self.decoder.take_rows(), first, spread, self.dims.num_heads)

    def _placed(self, g: Graph, chunk: Chunk, left: Left, passes: Value) -> Value:
        """Extra passes (Q,) of the tokens that stay, for all of the prompt, (P,)."""
        nobody = g.op("ConstantOfShape", g.shape_of(chunk.embeds, 0), value=ir.tensor(np.zeros(1, np.int64)))
        return g.op("ScatterElements", nobody, left.index, passes, axis=0)

    def parted(self, g: Graph, rows: Value) -> tuple[Value, dict[int, Value]]:
        """Rows (S, E) of tokens -> input embeddings (S, D), and what they add behind each deep layer."""
        layers, width = self.dims.deep_layers, self.dims.width
        if not layers:
            return rows, {}
        embeds, *deep = g.ops("Split", rows, [width] * (1 + len(layers)), outputs=1 + len(layers), axis=1)
        return embeds, dict(zip(layers, deep, strict=True))

    def decide(self, g: Graph, hidden: Value) -> Carried:
        """Reads the head once: does the model want to think on? `spoken` tells what it would say otherwise."""
        never = self.dims.never_spoken
        logits = self._logits(g, hidden, g.value(self._closing(never)) if never else None)
        if self.source.swapped:  # its row is the adapter's; the matrix is the base's
            own = g.op("Unsqueeze", g.op("MatMul", hidden, self.dialect.vector(g, HEAD_ROW, "adapter")), [1])
            logits = g.op("ScatterElements", logits, np.array([[self.source.latent_id]]), own, axis=1)
        best = self.dialect.largest(g, logits, self.dims.vocabulary)
        return {"logits": logits, "wants": g.op("Equal", best, [self.source.latent_id])}

    def spoken(self, g: Graph, logits: Value) -> Value:
        """The token [1] that is said where thinking ends."""
        closed = g.op("Add", logits, self._closing([self.source.latent_id]))
        return self.dialect.largest(g, closed, self.dims.vocabulary)

    def said(self, g: Graph, hidden: Value) -> tuple[Value, Value]:
        """The token [1] that is said next, and its logits (1, vocabulary): `spoken` of the head's logits, in fewer
        nodes."""
        closed = self._closing([self.source.latent_id, *self.dims.never_spoken])
        logits = self._logits(g, hidden, g.value(closed))
        return self.dialect.largest(g, logits, self.dims.vocabulary), logits

    def _logits(self, g: Graph, hidden: Value, bias: Value | None = None) -> Value:
        # Tied float weights are stored once, under the embedding's name.
        floats = not any(self.dialect.target.scheme_of(part) for part in ("embedding", "head"))
        role = "embedding" if self.source.tied and floats else "head"
        return self.dialect.linear(g, hidden, role, bias, part=role)

    def _closing(self, tokens: Sequence[int]) -> np.ndarray:
        """What is added to the logits, (vocabulary,), so that none of `tokens` is chosen."""
        mask = np.zeros(self.dims.vocabulary, self.dialect.floats.numpy())
        mask[list(tokens)] = -3e4 if self.dialect.target.computes_fp16 else -1e30
        return mask
