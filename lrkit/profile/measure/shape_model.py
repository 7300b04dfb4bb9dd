"""A backbone of a given shape with random weights: to judge a device before any download or training.

Place in the pipeline: lrkit/data/shapes.py -> `open_shape` -> a `Model` for cases.py. Lengths are forced, because
random weights decide nothing. The cost of an answer does not depend on the values of the weights. The number type is
the one that the device multiplies fastest, unless one is asked for.
"""

import time
from typing import Any

from lrkit.contract.attention import Attention, check_attention
from lrkit.contract.settings import ReasonerSettings
from lrkit.data.shapes import Shape, load_shape, shape_config, shape_processor
from lrkit.errors import CapacityError, UserError, require
from lrkit.families.table import fresh_models
from lrkit.profile.measure.cases import Model, ModelChoice
from lrkit.profile.measure.dtypes import fastest_dtype
from lrkit.profile.measure.meters import MemoryMeter
from lrkit.provenance import memory_bytes
from lrkit.runtime.sdk import Reasoner

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def open_shape(name: str, settings: ReasonerSettings, choice: ModelChoice) -> Model:
    """A model of that shape with random weights, on `choice.device`; `choice.path` is only its name.

    Raises:
        CapacityError: the machine's memory would not hold the weights.
        UserError: a device or number type that torch lacks here, CUDA graphs without a GPU, or kernels of attention
            that cannot run.
        MissingExtraError: torch is not installed.
    """
    for package in ("torch", "transformers", "peft"):
        require(package, "train")
    from lrkit.runtime.engines.torch.engine import check_device

    shape, device, reason = load_shape(name), choice.device or "cpu", None
    check_device(device, choice.cuda_graphs)
    dtype = choice.dtype
    if dtype is None:
        dtype, reason = fastest_dtype(device)
    if dtype not in _DTYPE_BYTES:
        raise UserError(f"unknown dtype {dtype!r}; give one of {', '.join(_DTYPE_BYTES)}")
    check_attention(choice.attention or Attention(), device, dtype, choice.cuda_graphs)
    needed, there = shape.num_weights * _DTYPE_BYTES[dtype], memory_bytes()
    if there is not None and needed > 0.8 * there:
        raise CapacityError(
            f"{name} has about {needed / 1e9:.0f} GB of weights as {dtype}, and this machine {there / 1e9:.0f} GB of "
            "memory; take a smaller shape or --dtype bfloat16"
        )
    memory = MemoryMeter()
    before, started = memory.resident(), time.perf_counter()
    engine = _engine(shape, settings, device, dtype, choice)
    after = memory.resident()
    grown = after - before if after is not None and before is not None else None
    return Model(choice, name, Reasoner(engine), time.perf_counter() - started, grown, True, reason)


def _engine(shape: Shape, settings: ReasonerSettings, device: str, dtype: str, choice: ModelChoice) -> Any:
    import torch

    from lrkit.model.build import build_reasoner
    from lrkit.model.open_backbone import backbone_loader
    from lrkit.runtime.engines.torch.engine import TorchEngine

    processor = shape_processor(shape).see_for(settings.replay)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device("meta"):
            model = fresh_models(shape.family).model(shape_config(shape))
        model = model.to_empty(device=device)
        _fill(model)
    finally:
        torch.set_default_dtype(previous)
    reasoner = build_reasoner(backbone_loader(shape.family)(model.eval()), settings, processor.latent_id)
    graphs, attention = choice.cuda_graphs, choice.attention or Attention()
    return TorchEngine(reasoner.to(getattr(torch, dtype)), processor, device, cuda_graphs=graphs, attention=attention)


def _fill(model: Any) -> None:
    """Small uniform values, norms of one. Rotary tables are computed again, because they are no weights."""
    import torch

    generator = torch.Generator(next(model.parameters()).device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                # A small block repeated: to draw billions of numbers would take longer than to profile them.
                block = torch.empty(65521, dtype=parameter.dtype, device=parameter.device)
                block.uniform_(-0.03, 0.03, generator=generator)
                count = parameter.numel()
                parameter.view(-1).copy_(block.repeat(-(-count // block.numel()))[:count])
            else:
                parameter.fill_(1.0)
    for module in model.modules():
        if "inv_freq" in dict(module.named_buffers(recurse=False)):
            fresh = module.__class__(**_rotary_arguments(module))
            module.inv_freq = fresh.inv_freq.to(next(model.parameters()).device)
            if hasattr(module, "original_inv_freq"):
                module.original_inv_freq = module.inv_freq.clone()


def _rotary_arguments(module: Any) -> dict[str, Any]:
    """The language model's rotary embedding is made from its config, the tower's from its width."""
    return {"config": module.config} if hasattr(module, "config") else {"dim": 2 * module.inv_freq.numel()}
