"""Devices, processes and precision of a run, by accelerate; and what accelerate's environment may not change.

Place in the pipeline: train/loop.py makes one `Accelerator` per stage.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor

from lrkit.errors import UserError, one_line
from lrkit.gpus import torch_can_use
from lrkit.model.reasoner import LatentReasoner
from lrkit.train.recipe import Recipe
from lrkit.train.share import Share

_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_ENGINES = {
    "ACCELERATE_USE_FSDP": ("FSDP", "it waits without end where processes call layers unequally often, as lrkit's do"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "it breaks where a weight has a gradient in one process alone, as here"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "it was never run with lrkit"),
}
"""Variable that accelerate's launcher sets -> what it would begin, and why not (docs/decisions/sharding.md)."""


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Device and precision as the recipe says, processes as whoever launched them says.

    Raises:
        UserError: an engine of accelerate other than DDP is asked for, or the processes cannot be joined.
    """
    _refuse_engines()
    half = recipe.precision == "bfloat16" or (
        recipe.precision == "auto" and torch_can_use() and torch.cuda.is_bf16_supported()
    )
    # Routers, TokenSR and the tower have no part in every batch.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = "bf16" if half else "no"
    state: dict[str, Any] = AcceleratorState._shared_state  # pyright: ignore[reportPrivateUsage]
    if state.get("_mixed_precision", precision) != precision:
        # It is kept for the whole process, and refuses the second run's where that is another.
        AcceleratorState._reset_state()  # pyright: ignore
    try:
        made = Accelerator(
            # Without it accelerate would leave processes on CPUs alone, each with a training of its own.
            cpu=_several() and not torch.accelerator.is_available(),
            mixed_precision=precision,
            # Not the number alone: accelerate would let a variable of the environment replace it.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=recipe.accumulate),
            kwargs_handlers=[unused],
        )
    except (ValueError, RuntimeError) as error:
        if not _several():
            raise
        raise UserError(
            f"the processes of the run cannot be joined ({one_line(error, 200)}); start them with accelerate launch or "
            "torchrun (train/README.md)"
        ) from error
    if _several() and made.num_processes == 1:
        raise UserError(
            f"this process was started as one of {os.environ['WORLD_SIZE']} (WORLD_SIZE), and {made.device} cannot "
            "join them; start one process, or set ACCELERATE_USE_CPU=true to train on CPUs"
        )
    made.gradient_accumulation_steps = share_of(made, recipe).rounds
    return made


def _several() -> bool:
    """Did a launcher start this process as one of several?"""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _refuse_engines() -> None:
    """An engine that cannot train with lrkit is not begun: it would fail late, or train something else."""
    for variable, (name, why) in _ENGINES.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"{name} is asked for ({variable}), and {why}; launch without it, and set shard=true, which keeps "
                "optimizer states, gradients and float32 weights in parts (train/README.md)"
            )


def share_of(accelerator: Accelerator, recipe: Recipe) -> Share:
    """What this process does of each update."""
    return Share(accelerator.process_index, accelerator.num_processes, recipe.accumulate)


def ignored_environment(recipe: Recipe) -> str | None:
    """A sentence where the environment asks for other values than the recipe, which decides alone.

    Launchers and job templates leave `ACCELERATE_GRADIENT_ACCUMULATION_STEPS` behind; obeyed, 4 against `accumulate: 1`
    would let three of four updates do nothing.
    """
    asked = os.environ.get(_ACCUMULATION)
    if asked is None or asked == str(recipe.accumulate):
        return None
    return (
        f"the environment's {_ACCUMULATION}={asked} is ignored, because the recipe says accumulate: "
        f"{recipe.accumulate}; change the recipe to change it"
    )


def number_types(accelerator: Accelerator, reasoner: LatentReasoner) -> dict[str, str]:
    """In which types a run trains (lrkit/model/precision.py): `backbone` holds its weights, `computed` its products."""
    backbone = str(reasoner.backbone.embedding_rows().dtype).removeprefix("torch.")
    return {"backbone": backbone, "computed": "bfloat16" if accelerator.mixed_precision == "bf16" else backbone}


def mean_over_processes(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The mean over all processes, in each of them."""
    if accelerator.num_processes == 1:
        return values
    mean = accelerator.reduce(values.to(accelerator.device), "mean")
    assert isinstance(mean, Tensor)
    return mean
