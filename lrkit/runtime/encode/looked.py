"""What a look at pictures leaves, for questions to be read behind it. Torch-free.

Place in the pipeline: `Engine.look` makes it -> `EncodedPrompt.looked` -> `Engine.generate` reads the question behind
it; scenes keep it in memory and in files.
"""

from typing import Protocol

import numpy as np


class Looked(Protocol):
    """The state after the picture part of a prompt: keys and values of every layer, rows of the visual tokens,
    refinement keys of routed layers. No question is in it. Opaque to all but the engine that made it; it is never
    changed, so several answers may read it at once."""

    @property
    def bytes(self) -> int:
        """Memory that it holds."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that `Engine.looked_of` makes it of again. Types that numpy lacks (bfloat16) are given as the
        integers of their bits."""
        ...
