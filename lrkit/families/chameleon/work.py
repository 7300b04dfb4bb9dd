"""What Chameleon's tower multiplies for a picture: its convolutions read far more places than there are visual tokens.

Place in the pipeline: backbone.py and tower.py -> ceilings of a profile.
"""

import re

from torch import nn

_LEVEL = re.compile(r"encoder\.down\.(\d+)\.")

_BACK = "post_quant_conv"
"""Serves the way from codes to pictures, which nothing here takes."""


def products(tower: nn.Module) -> int:
    """Multiplications for each visual token, attention aside: those of every convolution at all places of its output,
    and of the distances to all codes."""
    modules = tower.named_modules()
    convolutions = {name: module for name, module in modules if isinstance(module, nn.Conv2d) and name != _BACK}
    deepest = max(int(found[1]) for name in convolutions if (found := _LEVEL.match(name)))
    total = sum(one.weight.numel() * 4 ** (deepest - _level(name, deepest)) for name, one in convolutions.items())
    return total + tower.get_submodule("quantize.embedding").get_parameter("weight").numel()


def _level(name: str, deepest: int) -> int:
    """How often a picture was halved before this convolution's output."""
    if (found := _LEVEL.match(name)) is not None:
        return int(found[1]) + ("downsample" in name)
    return 0 if name == "encoder.conv_in" else deepest
