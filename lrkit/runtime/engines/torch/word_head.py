"""What hidden states say as words, by a torch model's head and its word embeddings.

Place in the pipeline: `TorchEngine.word_head` -> lrkit/probe/spoken_latents.py.

Legend: N states, D width, W words.
"""

import numpy as np
import torch
from torch import Tensor

from lrkit.model.reasoner import LatentReasoner

_AT_ONCE = 256
"""States whose logits are held at a time: a large vocabulary has a megabyte for each."""


class TorchWordHead:
    """A `WordHead` of a reasoner."""

    def __init__(self, reasoner: LatentReasoner, device: str) -> None:
        self._reasoner, self._device = reasoner, device

    @torch.inference_mode()
    def logits(self, hidden_ND: np.ndarray) -> np.ndarray:
        found = np.concatenate([self._reasoner.logits(part).float().cpu().numpy() for part in self._parts(hidden_ND)])
        found[:, self._reasoner.latent.token_id] = np.finfo(np.float32).min
        return found

    @torch.inference_mode()
    def nearest(self, hidden_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows_WD = self._reasoner.backbone.embedding_rows().detach()
        lengths_W = rows_WD.float().norm(dim=1).clamp_min(1e-30)
        found = [self._nearest(part, rows_WD, lengths_W) for part in self._parts(hidden_ND)]
        words, cosines, distances = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        return words, cosines, distances

    def _nearest(self, hidden_ND: Tensor, rows_WD: Tensor, lengths_W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent_ND = self._reasoner.latent.as_input(hidden_ND)
        length_N = latent_ND.float().norm(dim=1).clamp_min(1e-30)
        cosine_NW = (latent_ND @ rows_WD.T).float() / lengths_W / length_N[:, None]
        cosine_N, word_N = cosine_NW.max(1)
        distance_N = (latent_ND.float() - rows_WD[word_N].float()).norm(dim=1) / length_N
        return word_N, cosine_N, distance_N

    def _parts(self, hidden_ND: np.ndarray) -> list[Tensor]:
        dtype = self._reasoner.backbone.embedding_rows().dtype
        return list(torch.from_numpy(hidden_ND).to(self._device, dtype).split(_AT_ONCE))
