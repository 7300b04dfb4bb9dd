"""What Chameleon's tower computes for a picture, for the ceilings of a profile."""

import re
from typing import Any

from torch import nn

_LEVEL = re.compile(r"encoder\.down\.(\d+)\.(downsample)?")


def products(tower: nn.Module) -> int:
    """Multiplications that each patch of a picture, which is one code, takes outside attention: a convolution's weights
    meet every place of its output, and a patch has the more places the earlier the level."""
    vision: Any = tower.config
    levels = len(vision.channel_multiplier)
    found = vision.num_embeddings * vision.embed_dim  # the distances to all codes
    for name, module in tower.named_modules():
        if isinstance(module, nn.Conv2d) and name != "post_quant_conv":  # which serves the way back to pictures
            side = 1 << (levels - 1 - _level(name, levels - 1))
            found += module.weight.numel() * side**2
    return found


def _level(name: str, last: int) -> int:
    """How often the output of a convolution has been halved."""
    if name == "encoder.conv_in":
        return 0
    at = _LEVEL.match(name)
    return last if at is None else int(at.group(1)) + bool(at.group(2))
