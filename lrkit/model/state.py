"""Where a batch of reasoning sequences stands: the keys so far, and what the next latent needs.

A sequence is (method section 1): prompt, B1, z1, B2, z2, ..., speech. Samples of a batch may differ in everything.
Padding and finished samples are columns that the keys mark as unreal, and no later token attends to them.

Legend: B batch, V visual tokens (padded to the largest sample), K replayed tokens, D width, E width of a visual
    token's row.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lrkit.model.keys import GrowingKeys, Keys
from lrkit.model.replay import Replay, Windows
from lrkit.model.routing import RefinementState


@dataclass
class VisualTokens:
    """The prompt's visual tokens, per sample."""

    rows_BVE: Tensor
    """As `Backbone.encode_images` gives them."""
    real_BV: Tensor
    """True for a token, False for padding up to the largest sample."""
    column_BV: Tensor
    """Column of each token in the (padded) prompt."""
    windows: Windows | None = None
    """Where replay is fine: the full picture."""


@dataclass
class Pruned:
    """What pruning left for the layers behind it (pruning.py)."""

    keys: Keys
    """Of these layers."""
    first_layer: int
    """The first of them."""
    kept_BV: Tensor
    """Visual tokens that stayed."""
    column_BV: Tensor
    """Column of each in the prompt as these layers have it; meaningless for the others."""


@dataclass
class Sequences:
    """A batch of sequences in progress."""

    keys: Keys
    """Of all layers, or of those up to the pruned one; those of routed passes are the refinement's."""
    refinement: RefinementState
    next_position_B: Tensor
    """Position that the next token takes."""
    last_hidden_BD: Tensor
    """Hidden state, after the final norm, of the last real token."""
    visual: VisualTokens | None
    saliency_BV: Tensor | None
    """a(t): saliency of the visual tokens, seen from the last real token."""
    visited_BV: Tensor | None
    """Visual tokens already replayed."""
    replays: list[Replay] = field(default_factory=list)
    """One per latent step."""
    latent_steps_B: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Latent steps taken, per sample."""
    replay_slots: int | None = None
    """Slots of every replay; None: as many as the sample needs that selects most."""
    pruned: Pruned | None = None
    """None where all visual tokens stayed."""
    num_chunks: int = 0
    """Routed chunks so far: the prompt, then one per latent step."""

    def fork(self) -> "Sequences":
        """The same sequences, for a chunk whose keys are not kept: nothing that runs in it changes this state."""
        keys, pruned, refinement = self.keys, self.pruned, self.refinement
        return replace(
            self,
            keys=_forked(keys),
            pruned=None if pruned is None else replace(pruned, keys=_forked(pruned.keys)),
            refinement=replace(
                refinement,
                keys={at: _forked(one) for at, one in refinement.keys.items()},
                num_routed=dict(refinement.num_routed),
                log=list(refinement.log),
            ),
            replays=list(self.replays),
        )


def _forked(keys: Keys) -> Keys:
    assert isinstance(keys, GrowingKeys)  # recorded steps take latents one by one
    return keys.fork()
