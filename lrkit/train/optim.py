"""Optimizers and the learning rate of one stage. Used by the loop, which makes new ones for each stage."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lrkit.train.recipe import OptimizerConfig

# Rows that are looked up, and heads read as classes: Muon's orthogonal update would mix unrelated rows.
_NOT_HIDDEN = ("embed", "lm_head", "readout", "latent")


def build_optimizers(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[Optimizer]:
    """AdamW alone, or Muon on hidden matrices beside AdamW on the rest; only what requires a gradient."""
    trained = [(name, weight) for name, weight in named_parameters if weight.requires_grad]
    hidden = [weight for name, weight in trained if config.kind == "muon" and is_hidden_matrix(name, weight)]
    taken = {id(weight) for weight in hidden}
    rest = [weight for _, weight in trained if id(weight) not in taken]
    optimizers: list[Optimizer] = []
    if hidden:
        # Scaled to the size of an AdamW update, so that one learning rate serves both.
        optimizers.append(
            torch.optim.Muon(hidden, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    if rest:
        groups = [
            {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True))
    return optimizers


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
    """Give every group of every optimizer one rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
