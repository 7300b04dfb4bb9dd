"""How weights that train, their gradients and their optimizer lie in the processes of a run: whole in each (DDP).

    the loop (lrkit/train/loop.py) -> `Held`: `Replicas` here, or by `shard: true` `Shards` (lrkit/train/shards.py)
                                   -> the keeper (lrkit/train/keeper.py), which saves and restores either

What is saved is the same for both: weights and optimizers as one process alone would have them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from lrkit.train.optim import build_optimizers
from lrkit.train.stage import OptimizerConfig


class Held(Protocol):
    """The weights of one stage. All processes call the same in the same order."""

    model: nn.Module
    """The objective, as the loop calls it."""
    optimizers: list[Optimizer]

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of one batch."""
        ...

    def clip(self, most: float) -> Tensor:
        """Shortens the update's gradient to `most`; the norm that it had."""
        ...

    def step(self) -> None:
        """Updates the weights where this batch was the update's last, and forgets the gradients."""
        ...

    def whole(self) -> AbstractContextManager[object]:
        """A context in which every process has all weights as they are saved. What is put into them stays."""
        ...

    def optimizer_states(self) -> list[dict[str, Any]]:
        """The states of the optimizers, whole, in the main process; in others they may be a part."""
        ...

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        """The inverse of `optimizer_states`. Raises what torch raises."""
        ...

    def close(self) -> None:
        """The stage is over: weights stay as they are saved, and the optimizers go."""
        ...


class Replicas:
    """A `Held`: every process has everything, and averages its gradients with the others'."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, config: OptimizerConfig) -> None:
        self._accelerator = accelerator
        prepared: Any = accelerator.prepare(model, *build_optimizers(model.named_parameters(), config))
        self.model: nn.Module = prepared[0]
        self.optimizers: list[Optimizer] = list(prepared[1:])

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def clip(self, most: float) -> Tensor:
        return torch.as_tensor(self._accelerator.clip_grad_norm_(self.model.parameters(), most))

    def step(self) -> None:
        for optimizer in self.optimizers:  # as accelerate wraps it: it waits for the update's last batch
            optimizer.step()
            optimizer.zero_grad()

    def whole(self) -> AbstractContextManager[object]:
        return nullcontext()

    def optimizer_states(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def close(self) -> None:
        self._accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.optimizers = []
