"""Optimizers and the learning rate of one stage. Used by the loop, which makes new ones for each stage."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lrkit.train.stage import OptimizerConfig, OwnGroup

# Rows that are looked up, and heads read as classes: Muon's orthogonal update would mix unrelated rows.
_NOT_HIDDEN = ("embed", "lm_head", "readout", "latent")
_FACTOR = "rate"
"""Key of a group of an optimizer: its learning rate as a multiple of the common one."""
_OWN: dict[str, OwnGroup] = {"latent": "latent", "token_sr": "distillation"}
"""Module of a reasoner -> the group that its weights are."""


def build_optimizers(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[Optimizer]:
    """AdamW alone, or Muon on hidden matrices beside AdamW on the rest; only what requires a gradient."""
    trained = [(name, weight) for name, weight in named_parameters if weight.requires_grad]
    muon = config.kind == "muon"
    hidden = [(name, weight) for name, weight in trained if muon and is_hidden_matrix(name, weight)]
    rest = [(name, weight) for name, weight in trained if not (muon and is_hidden_matrix(name, weight))]
    optimizers: list[Optimizer] = []
    if hidden:
        # Scaled to the size of an AdamW update, so that one learning rate serves both.
        optimizers.append(
            torch.optim.Muon(
                _groups(hidden, config), lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    if rest:
        optimizers.append(torch.optim.AdamW(_groups(rest, config), lr=config.lr, betas=config.betas, fused=True))
    return optimizers


def _groups(named: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Weights with one decay and one factor of the rate together: those at the common rate first, matrices before
    vectors."""
    factors = [config.rates.get(group, 1.0) if (group := own_group(name)) else 1.0 for name, _ in named]
    made: list[dict[str, Any]] = []
    for factor in dict.fromkeys([1.0, *factors]):
        own = [weight for (_, weight), its in zip(named, factors, strict=True) if its == factor]
        for decay, weights in (
            (config.weight_decay, [weight for weight in own if weight.ndim >= 2]),
            (0.0, [weight for weight in own if weight.ndim < 2]),
        ):
            if weights:
                made.append({"params": weights, "weight_decay": decay, _FACTOR: factor})
    return made


def own_group(name: str) -> OwnGroup | None:
    """The weights of the method that a parameter is one of; None: it is the backbone's, an adapter's or a stage's."""
    first, _, below = name.removeprefix("reasoner.").partition(".")
    if first == "routers":
        return "step_encodings" if below.endswith(".step_encoding_RD") else "routers"
    return _OWN.get(first)


def is_hidden_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether Muon takes a weight: a matrix between hidden states, not a table of rows."""
    return weight.ndim == 2 and min(weight.shape) > 1 and not any(part in name for part in _NOT_HIDDEN)


def learning_rate(config: OptimizerConfig, update: int, total: int) -> float:
    """The rate of update `update` (from 0) of a stage of `total`: linear warm-up, then the schedule."""
    if update < config.warmup:
        return config.lr * (update + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    done = (update - config.warmup) / max(1, total - 1 - config.warmup)
    left = (1 + math.cos(math.pi * min(1.0, done))) / 2 if config.schedule == "cosine" else 1 - min(1.0, done)
    return config.lr * (config.final_fraction + (1 - config.final_fraction) * left)


def set_learning_rate(optimizers: Sequence[Optimizer], lr: float) -> None:
    """Give every group of every optimizer the rate, times its own factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            # States that were saved before there were factors have none.
            group["lr"] = lr * group.get(_FACTOR, 1.0)
