"""`<|latent|>`: its rows of the embedding and of the head, trained and saved with the adapter (method section 6).

The backbone's matrices stay frozen. The head row replaces the backbone's logit for the token; the embedding row exists
for backbones whose matrices are not tied, so that the token's vocabulary row is complete. A latent step never feeds the
token itself: it feeds a hidden state, or, in the baselines (method section 9), a constant that is learned for the step.

Legend: B batch, T latent steps, D width.
"""

import math

import torch
from torch import Tensor, nn

from lrkit.contract.settings import ThinkSettings
from lrkit.model.precision import Float32Module, exact, wide

_LEAST_NORM = 1e-30
"""No hidden state is that short, unless somebody made it zero: it then stays zero, however long embeddings are."""


class LatentToken(Float32Module):
    """The trained rows, and what makes a hidden state an input embedding (eq. 1)."""

    norm: Tensor

    def __init__(self, token_id: int, rows: Tensor, head_rows: Tensor | None, think: ThinkSettings) -> None:
        """`rows` is the backbone's token embedding matrix (vocabulary, D); `head_rows` its head, None where tied to it.

        Both rows start as the backbone has them, so that nothing changes before training. So do the constants of all
        steps, which start as the embedding row.
        """
        super().__init__()
        self.token_id = token_id
        self.scale_kind = think.latent_scale
        self._paused, self._cut = think.latents == "pause", think.gradient == "cut"
        start = (rows if head_rows is None else head_rows)[token_id].detach().float().clone()
        self.head_row_D = nn.Parameter(start)
        embedding = rows[token_id].detach().float().clone()
        self.embedding_row_D = self.head_row_D if head_rows is None else nn.Parameter(embedding)
        mean_norm = rows.detach().float().norm(dim=1).mean()
        self.register_buffer("norm", mean_norm)
        if think.latents != "fed_back":
            self.constant_TD = nn.Parameter(embedding.repeat(think.max_latent_steps, 1))
        if self.scale_kind == "learned":
            self.scale = nn.Parameter(mean_norm / math.sqrt(rows.shape[1]))

    @torch.no_grad()
    def refresh_norm(self, rows: Tensor) -> None:
        """Measures the embeddings' mean norm again: after words that began at random were learned, before a latent is.

        Once latents are in use their scale must stay.
        """
        self.norm.copy_(rows.detach().float().norm(dim=1).mean())
        if self.scale_kind == "learned":
            self.scale.copy_(self.norm / math.sqrt(rows.shape[1]))

    def logits(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Replaces the token's column of (..., vocabulary) by this row's product with `hidden` (..., D)."""
        with exact(hidden):
            own = wide(hidden) @ self.head_row_D
        logits[..., self.token_id] = own.to(logits.dtype)
        return logits

    def next_input(self, hidden_BD: Tensor, step_B: Tensor) -> Tensor:
        """The input embedding of each sample's step `step_B`, behind a token with that hidden state."""
        return self.constants(step_B, hidden_BD) if self._paused else self.fed_back(hidden_BD)

    def fed_back(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) as the inputs of the latents behind them; gradient stops here where it is cut."""
        return self.as_input(hidden.detach() if self._cut else hidden)

    def constants(self, step: Tensor, like: Tensor) -> Tensor:
        """Inputs (..., D) of the steps `step` (...) that stand for no hidden state, of the type of `like`. Steps beyond
        those learned have the constant of the last."""
        return self.as_input(self.constant_TD[step.clamp_max(len(self.constant_TD) - 1)].to(like.dtype))

    def as_input(self, hidden_BD: Tensor) -> Tensor:
        """A hidden state as the next latent's input embedding; `embedding` gives it the mean norm of the embeddings."""
        if self.scale_kind == "none":
            return hidden_BD
        if self.scale_kind == "learned":
            return (wide(hidden_BD) * self.scale).to(hidden_BD.dtype)
        norm_B1 = wide(hidden_BD).norm(dim=-1, keepdim=True).clamp_min(_LEAST_NORM)
        return (wide(hidden_BD) * (self.norm / norm_B1)).to(hidden_BD.dtype)
