"""What the full recompute of reference.py is handed and hands back.

Legend: as in reference.py.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Chunk:
    """Tokens read together: the prompt, one latent step, or the speech."""

    embeds_SD: Tensor
    """Where visual tokens add something behind deeper layers: (S, D (1 + deep layers)) of chunks with such tokens."""
    positions_S3: list[tuple[int, int, int]]
    routed: bool
    visual: tuple[int, ...] = ()
    """Indices of the visual tokens; they may be pruned."""


@dataclass
class Run:
    """One pass over the whole sequence."""

    normed_SD: Tensor
    saliency_S: Tensor
    """Row of the last position, mean over layers and heads."""
    routed: dict[tuple[int, int], list[int]]
    """(layer, chunk) -> index in the chunk of its routed tokens, ascending."""
    depths: dict[tuple[int, int], list[int]]
    """Extra passes of each of them."""


@dataclass
class Thought:
    """One latent step."""

    latent_D: Tensor
    """The hidden state that the step feeds back, before rescaling."""
    scores_V: Tensor
    replayed: list[int]
    weights: list[Tensor]
    rows_KD: Tensor | None
    """The embeddings replayed, as weighted."""


@dataclass
class Told:
    """All of one sample."""

    thoughts: list[Thought]
    decision_logits: list[Tensor]
    """Language head (vocabulary,) where a latent step began."""
    speech_logits_SW: Tensor
    """(speech tokens, vocabulary)."""
    run: Run
    prompt_length: int
    embeds: list[Tensor] = field(default_factory=list)
