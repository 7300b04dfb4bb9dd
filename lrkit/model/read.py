"""Reads prompts for answers: first the picture part, then the question part, each as a chunk of its own.

The picture part never sees a question. So it can be read once, kept (`Look`), and asked about many times; each answer
is the one that the whole prompt gets. Training reads both parts at once (decoder.py: prefill), which computes the same
up to rounding.

Place in the pipeline: runtime/engines/torch/engine.py -> `look`; generate.py -> `read`.

Legend: A axes of positions, B batch, P prompt tokens, S tokens of a part, N tokens of the picture part, C routed tokens
    of it, V visual tokens, H key heads, W head width, E width of a visual token's row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from lrkit.model.backbone import Backbone
from lrkit.model.decoder import (
    Prompts,
    Routing,
    embed_prompts,
    new_state,
    picture_parts,
    prefill,
    prompt_positions,
    read_question,
    run_chunk,
    visual_columns,
)
from lrkit.model.keys import GrowingKeys
from lrkit.model.routing import RefinementState, RoutedTokens
from lrkit.model.state import Sequences, VisualTokens

Pair = tuple[Tensor, Tensor]
"""Keys and values (H, N, W)."""


@dataclass(frozen=True)
class Look:
    """What reading one prompt's picture part leaves. Never changed: answers extend copies."""

    keys: tuple[Pair, ...]
    """Per layer."""
    rows_VE: Tensor
    """The visual tokens, as `Backbone.encode_images` gives them."""
    refined: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    """(layer, depth) -> refinement keys and values (H, C, W), and which are real (C,)."""
    num_routed: dict[int, Tensor] = field(default_factory=dict)
    """layer -> tokens (1,) it has routed, where routed positions are rearranged."""
    passes: dict[int, Tensor] = field(default_factory=dict)
    """Routed layer -> extra passes (N,) of each token, for reports."""


@dataclass
class _Part:
    """Columns of one part of every prompt, real ones first."""

    input_ids: Tensor
    """(B, S)"""
    prompt_mask: Tensor
    """(B, S) False where a prompt's part is shorter."""
    positions_ABS: Tensor
    pixel_values: Tensor | None = None
    grids: Tensor | None = None
    images_per_sample: tuple[int, ...] = ()


def read(
    backbone: Backbone,
    routing: Routing,
    prompts: Prompts,
    want_saliency: bool,
    looks: Sequence[Look] | None = None,
) -> Sequences:
    """Reads whole prompts part after part, or with `looks`, one each, only what stands behind their picture parts.
    Returns the sequences, ready to think or to speak. Raises as `prefill`."""
    count_B = picture_parts(prompts, backbone.image_token_id)
    has_pictures = prompts.pixel_values is not None or looks is not None
    if looks is None and (not has_pictures or not bool(count_B.any()) or _ends_in_pictures(backbone, prompts, count_B)):
        return prefill(backbone, routing, prompts, want_saliency)
    positions, next_position = prompt_positions(backbone, prompts)
    pictures = _part(prompts, positions, torch.zeros_like(count_B), count_B)
    question = _part(prompts, positions, count_B, prompts.prompt_mask.sum(1) - count_B)
    if looks is None:
        pictures.pixel_values, pictures.grids = prompts.pixel_values, prompts.grids
        pictures.images_per_sample = prompts.images_per_sample
        state = _read_pictures(backbone, routing, pictures)
    else:
        state = _behind(backbone, looks, pictures)
    rows = backbone.embed_tokens(question.input_ids)
    args = state, rows, question.prompt_mask, question.positions_ABS, want_saliency
    read_question(backbone, routing, *args)
    state.next_position_B = next_position
    return state


def look(backbone: Backbone, routing: Routing, prompts: Prompts) -> Look:
    """Reads a batch of one prompt that is a picture part and nothing else. Raises as `prefill`."""
    positions, _ = prompt_positions(backbone, prompts)
    given = prompts.pixel_values, prompts.grids, prompts.images_per_sample
    state = _read_pictures(backbone, routing, _Part(prompts.input_ids, prompts.prompt_mask, positions, *given))
    return _look_of(state, backbone.num_layers)


def _read_pictures(backbone: Backbone, routing: Routing, part: _Part) -> Sequences:
    rows, visual = embed_prompts(backbone, part)
    state = new_state(backbone, rows, visual)
    run_chunk(backbone, routing, state, rows, part.prompt_mask, part.positions_ABS)
    state.num_chunks = 0  # both parts are the prompt's chunk
    return state


def _ends_in_pictures(backbone: Backbone, prompts: Prompts, count_B: Tensor) -> bool:
    """Whether a prompt has visual tokens and nothing behind them."""
    is_visual_BP = (prompts.input_ids == backbone.image_token_id) & prompts.prompt_mask
    return bool((is_visual_BP.any(1) & (count_B == 0)).any())


def _part(prompts: Prompts, positions_ABP: Tensor, start_B: Tensor, count_B: Tensor) -> _Part:
    """The real tokens from `start_B` on, `count_B` of them."""
    columns = torch.arange(int(count_B.max()), device=count_B.device)
    valid_BS = columns < count_B[:, None]
    # A stable sort by "is padding" lists each prompt's real columns first, in order.
    real_BP = (~prompts.prompt_mask).to(torch.int8).sort(dim=1, stable=True).indices
    index_BS = real_BP.gather(1, (start_B[:, None] + columns).clamp_max(real_BP.shape[1] - 1))
    positions = positions_ABP.gather(2, index_BS.expand(len(positions_ABP), -1, -1)).masked_fill(~valid_BS, 0)
    return _Part(prompts.input_ids.gather(1, index_BS), valid_BS, positions)


def _look_of(state: Sequences, num_layers: int) -> Look:
    """What a state of one prompt holds."""
    assert isinstance(state.keys, GrowingKeys) and state.visual is not None and state.keys.valid_BN is not None
    refined: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    for (layer, depth), keys in state.refinement.keys.items():
        assert isinstance(keys, GrowingKeys)
        if keys.valid_BN is not None:
            found = keys.of_layer(layer)
            refined[layer, depth] = found[0][0], found[1][0], keys.valid_BN[0]
    passes: dict[int, Tensor] = {}
    for routed in state.refinement.log:
        chosen_C = routed.index_BA[0] >= 0
        passes[routed.layer] = torch.zeros_like(routed.real_BS[0], dtype=torch.long)
        passes[routed.layer][routed.index_BA[0][chosen_C]] = routed.depth_BA[0][chosen_C]
    pairs = (state.keys.of_layer(layer) for layer in range(num_layers))
    return Look(
        tuple((keys[0], values[0]) for keys, values in pairs),
        state.visual.rows_BVE[0],
        refined,
        {layer: count[0] for layer, count in state.refinement.num_routed.items()},
        passes,
    )


def _behind(backbone: Backbone, looks: Sequence[Look], part: _Part) -> Sequences:
    """The state in which looks, one per sample, leave a batch."""
    column_BV, real_BV = visual_columns((part.input_ids == backbone.image_token_id) & part.prompt_mask)
    visual = VisualTokens(_stacked([one.rows_VE for one in looks]), real_BV, column_BV)
    state = new_state(backbone, visual.rows_BVE, visual)
    assert isinstance(state.keys, GrowingKeys)
    for layer in range(backbone.num_layers):
        _fill(state.keys, layer, [one.keys[layer] for one in looks])
    state.keys.valid_BN = part.prompt_mask
    _refine(state.refinement, looks)
    num_tokens = part.prompt_mask.shape[1]
    index_BN = torch.arange(num_tokens, device=part.prompt_mask.device).where(part.prompt_mask, -1)
    for layer in looks[0].passes:
        passes_BN = _stacked([one.passes[layer] for one in looks])
        state.refinement.log.append(RoutedTokens(layer, 0, index_BN, passes_BN, part.prompt_mask))
    return state


def _refine(state: RefinementState, looks: Sequence[Look]) -> None:
    """Refinement keys of looks; where a look has none at a depth, because all its tokens stopped before, no real
    ones."""
    for at in sorted({at for one in looks for at in one.refined}):
        like = next(one.refined[at] for one in looks if at in one.refined)
        found = [one.refined.get(at, (like[0][:, :0], like[1][:, :0], like[2][:0])) for one in looks]
        keys = state.keys_of(*at)
        assert isinstance(keys, GrowingKeys)
        _fill(keys, at[0], [(key, value) for key, value, _ in found])
        keys.valid_BN = _stacked([valid for _, _, valid in found])
    for layer in looks[0].num_routed:
        state.num_routed[layer] = torch.stack([one.num_routed[layer] for one in looks])


def _fill(keys: GrowingKeys, layer: int, pairs: Sequence[Pair]) -> None:
    stacked = [_stacked([pair[side].transpose(0, 1) for pair in pairs]).transpose(1, 2) for side in (0, 1)]
    keys.cache.update(stacked[0], stacked[1], layer)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Tensors that differ in their first axis alone, as one batch; zeros (False) behind the shorter ones."""
    longest = max(len(row) for row in rows)
    return torch.stack([functional.pad(row, (0, 0) * (row.dim() - 1) + (0, longest - len(row))) for row in rows])
