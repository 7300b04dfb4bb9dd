"""Shards what trains over the processes of a run (recipe `shard: true`): each keeps a part of every weight in float32,
with the sums of its gradients and the optimizer's states, and computes with all weights.

    whole weights -> batch -> gradients of one process -> `sum_parts` -> clip, optimizer on the parts -> `join_parts`

This is FSDP2's order of work with `reshard_after_forward=False`, without its hooks. Hooks exchange weights and
gradients whenever a layer is called, and here the processes call layers unequally often: latent steps, pictures and
windows to distil differ between their samples. So they exchange at two points alone, behind a batch and behind an
update (docs/decisions/sharding.md).

With bfloat16, a model that trains in full computes with bfloat16 weights, and keeps float32 in its parts.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from lrkit.train.optim import build_optimizers
from lrkit.train.parts import Part, join_parts, narrows, sum_parts
from lrkit.train.replicas import Held, Replicas
from lrkit.train.stage import OptimizerConfig

_COUNT = "step"
"""What an optimizer keeps once for a weight, and not for each of its numbers."""


class Shards:
    """A `Held` (lrkit/train/replicas.py)."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, config: OptimizerConfig, backbone: nn.Module
    ) -> None:
        """`backbone` is the part of `model` whose weights may be narrowed, where all of them train."""
        self._accelerator = accelerator
        self._processes = accelerator.num_processes
        self._narrow = narrows(backbone, accelerator.mixed_precision == "bf16")
        self._backbone = {id(weight) for weight in backbone.parameters()}
        # Without DDP around it: gradients are exchanged here. Before it is cut: what is moved to the device is copied.
        self.model: nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizers: list[Optimizer] = build_optimizers(model.named_parameters(), config)
        self._parts = [self._cut(optimizer) for optimizer in self.optimizers]

    def _cut(self, optimizer: Optimizer) -> list[Part]:
        """The parts of the weights of an optimizer, which has them instead from now on."""
        made: list[Part] = []
        for group in optimizer.param_groups:
            parts = [self._part(weight) for weight in group["params"]]
            group["params"] = [part.own for part in parts]
            made += parts
        return made

    def _part(self, weight: nn.Parameter) -> Part:
        narrow = self._narrow and id(weight) in self._backbone and weight.dtype == torch.float32
        return Part.of(weight, self._accelerator.process_index, self._processes, torch.bfloat16 if narrow else None)

    @property
    def _all(self) -> list[Part]:
        return [part for parts in self._parts for part in parts]

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)
        with torch.no_grad():
            for part, total in sum_parts(self._with_gradient(), self._processes):
                mean = total.div_(self._processes)
                part.own.grad = mean if part.own.grad is None else part.own.grad.add_(mean)

    def _with_gradient(self) -> list[Part]:
        """What has a gradient in any process; nothing else is updated, as in one process alone."""
        parts = self._all
        has = torch.tensor([part.whole.grad is not None for part in parts], device=self._accelerator.device).int()
        if self._processes > 1:
            distributed.all_reduce(has, distributed.ReduceOp.MAX)
        return [part for part, any_has in zip(parts, has.tolist(), strict=True) if any_has]

    def clip(self, most: float) -> Tensor:
        own = [part.own for part in self._all]
        norm = get_total_norm([weight.grad for weight in own if weight.grad is not None]).to(self._accelerator.device)
        if self._processes > 1:
            distributed.all_reduce(squared := norm.square())
            norm = squared.sqrt()
        clip_grads_with_norm_(own, most, norm)
        return norm

    def step(self) -> None:
        if not self._accelerator.sync_gradients:
            return
        for optimizer in self.optimizers:
            optimizer.step()
        changed = [part for part in self._all if part.own.grad is not None]
        with torch.no_grad():
            for dtype in dict.fromkeys(part.whole.dtype for part in changed):
                alike = [part for part in changed if part.whole.dtype == dtype]
                for part, whole in join_parts(alike, self._processes, lambda part: part.own, dtype):
                    part.whole.copy_(whole)
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    @contextmanager
    def whole(self) -> Generator[None]:
        narrow = self._widen()
        try:
            yield
        finally:
            assert all(part.narrow is not None or part.is_inside(self._accelerator.process_index) for part in self._all)
            for part in narrow:
                part.own.data.copy_(part.whole.data.view(-1)[part.cut.of(self._accelerator.process_index)])
                part.whole.data = part.whole.data.to(part.narrow)

    def _widen(self) -> list[Part]:
        """Gives all weights their float32 numbers; returns those that had others."""
        narrow = [part for part in self._all if part.narrow is not None]
        for part, whole in join_parts(narrow, self._processes, lambda part: part.own.data, torch.float32):
            part.whole.data = whole.clone()
        return narrow

    def optimizer_states(self) -> list[dict[str, Any]]:
        return [self._joined(optimizer, parts) for optimizer, parts in zip(self.optimizers, self._parts, strict=True)]

    def _joined(self, optimizer: Optimizer, parts: Sequence[Part]) -> dict[str, Any]:
        """The state of one optimizer as of whole weights. What is joined leaves the device at once."""
        state = optimizer.state_dict()
        number_of = {id(part): number for number, part in enumerate(parts)}
        kept: dict[int, dict[str, Any]] = {number: dict(values) for number, values in state["state"].items()}
        for name in dict.fromkeys(name for values in kept.values() for name in values if name != _COUNT):
            having = [part for number, part in enumerate(parts) if name in kept.get(number, {})]
            rows = {id(part): kept[number_of[id(part)]][name] for part in having}
            row_of = lambda part, rows=rows: rows[id(part)]  # noqa: E731
            for part, whole in join_parts(having, self._processes, row_of, torch.float32):
                if self._accelerator.is_main_process:
                    kept[number_of[id(part)]][name] = whole.to("cpu", copy=True)
        return {**state, "state": kept}

    def load_optimizer_states(self, states: Sequence[dict[str, Any]]) -> None:
        for optimizer, parts, state in zip(self.optimizers, self._parts, states, strict=True):
            own = {number: self._own(values, parts[number]) for number, values in state["state"].items()}
            optimizer.load_state_dict({**state, "state": own})

    def _own(self, values: dict[str, Any], part: Part) -> dict[str, Any]:
        """This process's part of what is kept of one weight."""
        found: dict[str, Any] = {_COUNT: values[_COUNT]}
        for name in (name for name in values if name != _COUNT):  # in the same order in all processes
            if values[name].shape != part.whole.shape:
                raise ValueError(f"{name} is of {tuple(values[name].shape)}, its weight of {tuple(part.whole.shape)}")
            found[name] = values[name].reshape(-1)[part.cut.of(self._accelerator.process_index)].clone()
        return found

    def close(self) -> None:
        self._widen()
        self._accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.optimizers, self._parts = [], []


def hold(accelerator: Accelerator, model: nn.Module, config: OptimizerConfig, backbone: nn.Module, shard: bool) -> Held:
    """The weights of a stage, with new optimizers, as the recipe says; `backbone` as in `Shards`."""
    return Shards(accelerator, model, config, backbone) if shard else Replicas(accelerator, model, config)
