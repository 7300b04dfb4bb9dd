"""Where an answer stands, in torch: what choices are scored from.

Place in the pipeline: generate.py thinks, then gives `TorchPlace` to `speak_choice` (lrkit/contract/choosing.py)
instead of speaking freely.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from lrkit.contract.choosing import log_softmax
from lrkit.errors import UserError
from lrkit.model.reasoner import LatentReasoner
from lrkit.model.state import Sequences


@dataclass(frozen=True)
class TorchPlace:
    """A `Place` behind the state of one sequence, which stays as it is."""

    reasoner: LatentReasoner
    state: Sequences
    between_steps: Callable[[], None]
    """Ends the answer by what it raises."""
    failed: Callable[[LatentReasoner], UserError]
    """The error of numbers that became NaN or infinite."""

    def log_probabilities(self) -> np.ndarray:
        """As `Place` has it.

        Raises:
            UserError: the model's numbers became NaN or infinite.
        """
        logits_BW = self.reasoner.logits(self.state.last_hidden_BD).float().cpu()
        if not bool(logits_BW.max().isfinite()):  # the greatest of numbers of which one is NaN is NaN
            raise self.failed(self.reasoner)
        return log_softmax(logits_BW[0].numpy(), self.reasoner.latent.token_id)

    def after(self, token: int) -> "TorchPlace":
        """As `Place` has it."""
        self.between_steps()
        state = self.state.fork()
        ids_BS = torch.tensor([[token]], device=state.next_position_B.device)
        self.reasoner.speak(state, ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))
        return replace(self, state=state)
