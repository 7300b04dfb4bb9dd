"""One chunk through the layers: main pass, saliency row, routing; and the start of a sequence (prefill).

Place in the pipeline: `LatentReasoner` (reasoner.py) calls `prefill`, then `run_chunk` for latent steps and speech.

Legend: A axes of positions, B batch, P prompt tokens, S tokens of the chunk, N keys, V visual tokens, D width, E
    width of a visual token's row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lrkit.contract.settings import PruneSettings
from lrkit.errors import DataError
from lrkit.families.protocols import Grid
from lrkit.model.backbone import Backbone
from lrkit.model.keys import GrowingKeys, Keys
from lrkit.model.pruning import Survivors, choose
from lrkit.model.replay import FullPictures
from lrkit.model.routing import RefinementState, Rotary, RoutedLayer, gather_rotary
from lrkit.model.saliency import SaliencyRow
from lrkit.model.state import Pruned, Sequences, VisualTokens


class Prompts(Protocol):
    """The part of a batch that prefill reads (lrkit/runtime/engines/torch/prompt_batch.py: PromptBatch)."""

    input_ids: Tensor
    prompt_mask: Tensor
    pixel_values: Tensor | None
    grids: Tensor | None
    images_per_sample: tuple[int, ...]


class Asked(Prompts, FullPictures, Protocol):
    """A batch that is read, and then thought about."""


NO_PRUNING = PruneSettings()
Routing = Mapping[int, RoutedLayer]
"""Layer index -> its router; the layers that do not route are absent."""


def run_chunk(
    backbone: Backbone,
    routing: Routing,
    state: Sequences,
    rows_BSE: Tensor,
    valid_BS: Tensor,
    positions_ABS: Tensor,
    saliency: SaliencyRow | None = None,
) -> Tensor:
    """Runs one chunk behind a prompt through every layer and appends it to the caches: (B, S, E) -> normed (B, S, D).

    `routing` is empty for speech. `valid_BS` False marks padding and samples that have stopped. Rows (B, S, D) add
    nothing behind `Backbone.deep_layers`. What a row does add there is added once, behind the layer and its routing:
    routers see the layer's own output, and refined passes are of it.
    """
    chunk = _Chunk.of(backbone, routing, state, rows_BSE, valid_BS, positions_ABS, saliency)
    if state.pruned is None:
        return chunk.through(backbone.num_layers).finish()
    chunk.through(state.pruned.first_layer)
    chunk.goes_behind(state.pruned)
    return chunk.through(backbone.num_layers).finish()


@dataclass
class _Chunk:
    """A chunk on its way through the layers."""

    backbone: Backbone
    routing: Routing
    state: Sequences
    hidden_BSD: Tensor
    added: dict[int, Tensor]
    """By deep layer: what the tokens add behind it, (B, S, D)."""
    valid_BS: Tensor
    rotary: Rotary
    mask_B1SN: Tensor | None
    keys: Keys
    saliency: SaliencyRow | None
    layer: int = 0
    """The next."""
    survivors: Survivors | None = None
    """Which tokens of the chunk are left, where some have been pruned."""
    parts: Sequence[Tensor] = ()
    """Where (B, S) routing chooses on its own; empty: in the chunk as a whole."""

    @classmethod
    def of(
        cls, backbone: Backbone, routing: Routing, state: Sequences, rows_BSE: Tensor, valid_BS: Tensor,
        positions_ABS: Tensor, saliency: SaliencyRow | None,
    ) -> "_Chunk":  # fmt: skip
        """In front of the first layer."""
        mask, rotary = state.keys.extend(valid_BS), backbone.rotary(positions_ABS, rows_BSE)
        hidden, added = _parted(backbone, rows_BSE)
        return cls(backbone, routing, state, hidden, added, valid_BS, rotary, mask, state.keys, saliency)

    def through(self, layer: int) -> "_Chunk":
        """All layers up to that one, which is not run."""
        while self.layer < layer:
            self._one()
            self.layer += 1
        return self

    def _one(self) -> None:
        layer, backbone, state = self.layer, self.backbone, self.state
        cache = self.keys.cache
        hidden = backbone.run_layer(layer, self.hidden_BSD, self.mask_B1SN, self.rotary, cache, self.saliency)
        if layer in self.routing:

            def run(tokens: Tensor, seen: Tensor | None, at: Rotary, keys: Keys) -> Tensor:
                return backbone.run_layer(layer, tokens, seen, at, keys.cache)

            for number, part_BS in enumerate(self.parts or (self.valid_BS,)):
                if self.survivors is not None:
                    part_BS = self.survivors.among(part_BS)
                hidden = self.routing[layer](hidden, part_BS, self.rotary, state.refinement, state.num_chunks, run)
                if self.survivors is not None:
                    real_BP = self.parts[number] if self.parts else self.survivors.real_BP
                    state.refinement.log[-1] = self.survivors.reported(state.refinement.log[-1], real_BP)
        if layer in self.added:
            hidden = hidden + self.added[layer]
        self.hidden_BSD = hidden

    def goes_behind(self, pruned: Pruned, last_B: Tensor | None = None) -> None:
        """The layers that follow have other keys. `last_B` as in `SaliencyRow`."""
        self.keys, self.mask_B1SN = pruned.keys, pruned.keys.extend(self.valid_BS)
        if self.saliency is not None:
            self.saliency = self.saliency.begin_behind(last_B)

    def keep(self, survivors: Survivors) -> None:
        """The others leave."""
        self.survivors = survivors
        self.hidden_BSD = survivors.of(self.hidden_BSD)
        self.added = {layer: survivors.of(added) for layer, added in self.added.items()}
        self.valid_BS, self.rotary = survivors.valid_BS, gather_rotary(self.rotary, survivors.index_BS)

    def finish(self) -> Tensor:
        """Behind the last layer: the normed hidden states (B, S, D)."""
        if self.routing:
            self.state.num_chunks += 1
        return self.backbone.final_norm(self.hidden_BSD)


def _parted(backbone: Backbone, rows_BSE: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Rows of a chunk as input embeddings, and what they add behind each deep layer."""
    if rows_BSE.shape[-1] == backbone.hidden_size:
        return rows_BSE, {}
    embeds, *deep = rows_BSE.split(backbone.hidden_size, dim=-1)
    return embeds, dict(zip(backbone.deep_layers, deep, strict=True))


def as_rows(embeds_BSD: Tensor, width: int) -> Tensor:
    """Embeddings of tokens that add nothing behind deeper layers, as rows of E = `width` numbers."""
    further = width - embeds_BSD.shape[-1]
    return functional.pad(embeds_BSD, (0, further)) if further else embeds_BSD


def prefill(
    backbone: Backbone,
    routing: Routing,
    prompts: Prompts,
    want_saliency: bool,
    prune: PruneSettings = NO_PRUNING,
) -> Sequences:
    """Reads a batch of prompts (text and images) at once and returns the sequences, ready to think or to speak. Routing
    chooses in the picture part and in the question part apart, as where these are read one after the other (read.py).

    Raises:
        DataError: the image tokens of a prompt do not match its images.
    """
    rows, visual = embed_prompts(backbone, prompts)
    positions, next_position = prompt_positions(backbone, prompts)
    state = new_state(backbone, rows, visual)
    parts = () if visual is None or not routing else _parts(backbone, prompts)
    read_question(backbone, routing, state, rows, prompts.prompt_mask, positions, want_saliency, prune, parts)
    state.next_position_B = next_position
    return state


def new_state(backbone: Backbone, rows_BPE: Tensor, visual: VisualTokens | None) -> Sequences:
    """Sequences that nothing has been read of."""
    like, count = backbone.embedding_rows(), len(rows_BPE)
    return Sequences(
        keys=GrowingKeys(),
        refinement=RefinementState(lambda at: backbone.rotary(at.expand(backbone.axes, -1, -1), like)),
        next_position_B=torch.zeros(count, dtype=torch.long, device=rows_BPE.device),
        last_hidden_BD=rows_BPE[:, 0, : backbone.hidden_size],
        visual=visual,
        saliency_BV=None,
        visited_BV=None if visual is None else ~visual.real_BV,
        latent_steps_B=torch.zeros(count, dtype=torch.long, device=rows_BPE.device),
    )


def read_question(
    backbone: Backbone,
    routing: Routing,
    state: Sequences,
    rows_BSE: Tensor,
    valid_BS: Tensor,
    positions_ABS: Tensor,
    want_saliency: bool,
    prune: PruneSettings = NO_PRUNING,
    parts: Sequence[Tensor] = (),
) -> None:
    """Runs the chunk that ends the prompts; keeps the last token's hidden state and saliency. `parts` (B, S) say where
    routing chooses on its own. Updates `state`."""
    columns = torch.arange(valid_BS.shape[1], device=valid_BS.device)
    last_B = torch.where(valid_BS, columns, -1).amax(1)
    visual = state.visual
    row = SaliencyRow(last_B) if (want_saliency or prune.active) and visual is not None else None
    chunk = _Chunk.of(backbone, routing, state, rows_BSE, valid_BS, positions_ABS, row)
    chunk.parts = parts
    if visual is not None and prune.active:
        last_B = _prune(chunk, prune, visual)
    hidden = chunk.through(backbone.num_layers).finish()
    state.last_hidden_BD = hidden[torch.arange(len(hidden), device=hidden.device), last_B]
    if row is not None and visual is not None:
        state.saliency_BV = visual_saliency(row, visual, state.pruned) if want_saliency else None


def picture_parts(prompts: Prompts, image_id: int) -> Tensor:
    """(B,) real tokens of each prompt up to and with its last visual one; 0 where the prompt has one part: without a
    visual token, and where nothing follows the last. As `picture_part` of lrkit/runtime/encode/processor.py."""
    mask_BP = prompts.prompt_mask
    is_visual_BP = (prompts.input_ids == image_id) & mask_BP
    # Real tokens from each column on; a visual token with one real token behind it has 2.
    left_BP = mask_BP.flip(1).long().cumsum(1).flip(1)
    behind_B = torch.where(is_visual_BP, left_BP - 1, mask_BP.shape[1]).amin(1)
    count_B = mask_BP.sum(1)
    return torch.where((behind_B == 0) | (behind_B >= count_B), 0, count_B - behind_B)


def _parts(backbone: Backbone, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Where the picture parts and the question parts of prompts stand."""
    mask_BP = prompts.prompt_mask
    in_pictures_BP = mask_BP.long().cumsum(1) <= picture_parts(prompts, backbone.image_token_id)[:, None]
    return mask_BP & in_pictures_BP, mask_BP & ~in_pictures_BP


def _prune(chunk: _Chunk, settings: PruneSettings, visual: VisualTokens) -> Tensor:
    """Runs the prompt to the pruned layer and leaves out who does not survive it. Returns where the last token of each
    sample now stands, (B,)."""
    assert settings.after_layer is not None and chunk.saliency is not None
    chunk.through(settings.after_layer + 1)
    score_BV = visual_saliency(chunk.saliency, visual)
    survivors = choose(settings, score_BV, visual, chunk.valid_BS)
    chunk.keep(survivors)
    last_B = survivors.valid_BS.sum(1) - 1
    pruned = Pruned(GrowingKeys(), chunk.layer, survivors.kept_BV, survivors.column_BV)
    chunk.state.pruned = pruned
    chunk.goes_behind(pruned, last_B)
    return last_B


def visual_saliency(row: SaliencyRow, visual: VisualTokens, pruned: Pruned | None = None) -> Tensor:
    """a(t): the row's columns of the visual tokens (B, V), 0 for padding. Layers that a token never reached pay it no
    attention."""
    if pruned is None or row.behind is None:
        return row.mean().gather(1, visual.column_BV).masked_fill(~visual.real_BV, 0.0)
    assert row.total_BN is not None and row.behind.total_BN is not None
    behind_BV = row.behind.total_BN.gather(1, pruned.column_BV).masked_fill(~pruned.kept_BV, 0.0)
    total_BV = row.total_BN.gather(1, visual.column_BV) + behind_BV
    return (total_BV / (row.num_layers + row.behind.num_layers)).masked_fill(~visual.real_BV, 0.0)


def embed_prompts(backbone: Backbone, prompts: Prompts) -> tuple[Tensor, VisualTokens | None]:
    """Rows (B, P, E) with the visual tokens in place, and those tokens per sample; without images the input embeddings
    (B, P, D), and None."""
    embeds_BPD = backbone.embed_tokens(prompts.input_ids)
    is_visual_BP = (prompts.input_ids == backbone.image_token_id) & prompts.prompt_mask
    if prompts.pixel_values is None or prompts.grids is None:
        if bool(is_visual_BP.any()):
            raise DataError(
                "a prompt holds image tokens but the batch holds no image; give the image or leave the tokens out"
            )
        return embeds_BPD, None
    tokens_VE = backbone.encode_images(prompts.pixel_values, prompts.grids).to(embeds_BPD.dtype)
    count_B = is_visual_BP.sum(1)
    if int(count_B.sum()) != len(tokens_VE):
        raise DataError(
            f"the prompts hold {int(count_B.sum())} image tokens but the images give {len(tokens_VE)} visual tokens; "
            "give each picture one image token for each of its visual tokens"
        )
    rows_BPE = as_rows(embeds_BPD, tokens_VE.shape[-1]).masked_scatter(is_visual_BP[..., None], tokens_VE)
    column_BV, real_BV = visual_columns(is_visual_BP)
    gathered = rows_BPE.gather(1, column_BV[..., None].expand(-1, -1, rows_BPE.shape[-1]))
    return rows_BPE, VisualTokens(gathered, real_BV, column_BV)


def visual_columns(is_visual_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Where visual tokens stand: column (B, V) of each, and which of these are real (B, V)."""
    count_B = is_visual_BP.sum(1)
    width = int(count_B.max())
    # Stable sort by "is not visual" lists each prompt's visual columns first, in order.
    column_BV = (~is_visual_BP).to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
    return column_BV, torch.arange(width, device=count_B.device) < count_B[:, None]


def prompt_positions(backbone: Backbone, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """The backbone's spatial positions (A, B, P), 0 on padding, and the position (B,) that follows each prompt."""
    device = prompts.input_ids.device
    ids_BP, mask_BP = prompts.input_ids.cpu(), prompts.prompt_mask.cpu()
    grids = _grids(prompts)
    positions = torch.zeros(backbone.axes, *ids_BP.shape, dtype=torch.long)
    following = torch.zeros(len(ids_BP), dtype=torch.long)
    cursor = 0
    for sample, count in enumerate(prompts.images_per_sample):
        own = backbone.prompt_positions(ids_BP[sample][mask_BP[sample]].tolist(), grids[cursor : cursor + count])
        positions[:, sample, mask_BP[sample]] = own
        following[sample] = own.max() + 1
        cursor += count
    return positions.to(device), following.to(device)


def _grids(prompts: Prompts) -> Sequence[Grid]:
    return [] if prompts.grids is None else [tuple(grid) for grid in prompts.grids.tolist()]
