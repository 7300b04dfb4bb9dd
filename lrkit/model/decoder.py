"""One chunk through the layers: main pass, saliency row, routing; and the start of a sequence (prefill).

Place in the pipeline: `LatentReasoner` (reasoner.py) calls `prefill`, then `run_chunk` for latent steps and speech.

Legend: A axes of positions, B batch, P prompt tokens, S tokens of the chunk, N keys, V visual tokens, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lrkit.errors import DataError
from lrkit.families.protocols import Grid
from lrkit.model.backbone import Backbone
from lrkit.model.keys import GrowingKeys, Keys
from lrkit.model.routing import RefinementState, Rotary, RoutedLayer
from lrkit.model.saliency import SaliencyRow
from lrkit.model.state import Sequences, VisualTokens


class Prompts(Protocol):
    """The part of a batch that prefill reads (lrkit/runtime/engines/torch/prompt_batch.py: PromptBatch)."""

    input_ids: Tensor
    prompt_mask: Tensor
    pixel_values: Tensor | None
    grids: Tensor | None
    images_per_sample: tuple[int, ...]


Routing = Mapping[int, RoutedLayer]
"""Layer index -> its router; the layers that do not route are absent."""


def run_chunk(
    backbone: Backbone,
    routing: Routing,
    state: Sequences,
    embeds_BSD: Tensor,
    valid_BS: Tensor,
    positions_ABS: Tensor,
    saliency: SaliencyRow | None = None,
) -> Tensor:
    """Runs one chunk through every layer and appends it to the caches: (B, S, D) -> normed (B, S, D).

    `routing` is empty for speech. `valid_BS` False marks padding and samples that have stopped.
    """
    mask = state.keys.extend(valid_BS)
    rotary = backbone.rotary(positions_ABS, embeds_BSD)
    hidden = embeds_BSD
    for layer in range(backbone.num_layers):
        hidden = backbone.run_layer(layer, hidden, mask, rotary, state.keys.cache, saliency)
        if layer in routing:

            def run(tokens: Tensor, seen: Tensor | None, at: Rotary, keys: Keys, layer: int = layer) -> Tensor:
                return backbone.run_layer(layer, tokens, seen, at, keys.cache)

            hidden = routing[layer](hidden, valid_BS, rotary, state.refinement, state.num_chunks, run)
    if routing:
        state.num_chunks += 1
    return backbone.final_norm(hidden)


def prefill(
    backbone: Backbone,
    routing: Routing,
    prompts: Prompts,
    want_saliency: bool,
) -> Sequences:
    """Reads a batch of prompts (text and images) and returns the sequences, ready to think or to speak.

    Raises:
        DataError: the image tokens of a prompt do not match its images.
    """
    embeds, visual = embed_prompts(backbone, prompts)
    mask_BP = prompts.prompt_mask
    positions, next_position = prompt_positions(backbone, prompts)
    state = Sequences(
        keys=GrowingKeys(),
        refinement=RefinementState(lambda at: backbone.rotary(at.expand(backbone.axes, -1, -1), embeds)),
        next_position_B=next_position,
        last_hidden_BD=embeds[:, 0],
        visual=visual,
        saliency_BV=None,
        visited_BV=None if visual is None else ~visual.real_BV,
        latent_steps_B=torch.zeros(len(embeds), dtype=torch.long, device=embeds.device),
    )
    columns = torch.arange(mask_BP.shape[1], device=mask_BP.device)
    last_B = torch.where(mask_BP, columns, -1).amax(1)
    row = SaliencyRow(last_B) if want_saliency and visual is not None else None
    hidden = run_chunk(backbone, routing, state, embeds, mask_BP, positions, row)
    state.last_hidden_BD = hidden[torch.arange(len(hidden), device=hidden.device), last_B]
    if row is not None and visual is not None:
        state.saliency_BV = visual_saliency(row, visual)
    return state


def visual_saliency(row: SaliencyRow, visual: VisualTokens) -> Tensor:
    """a(t): the row's columns of the visual tokens (B, V), 0 for padding."""
    return row.mean().gather(1, visual.column_BV).masked_fill(~visual.real_BV, 0.0)


def embed_prompts(backbone: Backbone, prompts: Prompts) -> tuple[Tensor, VisualTokens | None]:
    """Input embeddings (B, P, D) with the visual tokens in place, and those tokens per sample (None without images)."""
    embeds_BPD = backbone.embed_tokens(prompts.input_ids)
    is_visual_BP = (prompts.input_ids == backbone.image_token_id) & prompts.prompt_mask
    if prompts.pixel_values is None or prompts.grids is None:
        if bool(is_visual_BP.any()):
            raise DataError(
                "a prompt holds image tokens but the batch holds no image; give the image or leave the tokens out"
            )
        return embeds_BPD, None
    tokens_VD = backbone.encode_images(prompts.pixel_values, prompts.grids).to(embeds_BPD.dtype)
    count_B = is_visual_BP.sum(1)
    if int(count_B.sum()) != len(tokens_VD):
        raise DataError(
            f"the prompts hold {int(count_B.sum())} image tokens but the images give {len(tokens_VD)} visual tokens; "
            "give each picture one image token for each of its visual tokens"
        )
    embeds_BPD = embeds_BPD.masked_scatter(is_visual_BP[..., None], tokens_VD)
    width = int(count_B.max())
    # Stable sort by "is not visual" lists each prompt's visual columns first, in order.
    column_BV = (~is_visual_BP).to(torch.int8).sort(dim=1, stable=True).indices[:, :width]
    real_BV = torch.arange(width, device=count_B.device) < count_B[:, None]
    gathered = embeds_BPD.gather(1, column_BV[..., None].expand(-1, -1, embeds_BPD.shape[-1]))
    return embeds_BPD, VisualTokens(gathered, real_BV, column_BV)


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
