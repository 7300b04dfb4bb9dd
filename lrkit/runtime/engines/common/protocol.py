"""What every engine offers to `Reasoner`: encoded prompts in, generated tokens with their history out. Torch-free.

Engines: onnxruntime/engine.py runs a bundle on ONNX Runtime and tensorrt/engine.py by its TensorRT engines, both over
program_engine.py; torch/engine.py runs a checkpoint (the one file here that imports torch, and only when it is asked
for).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lrkit.contract.generated import Generated, Mode
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.common.stopping import Stop

OnToken = Callable[[list[int | None]], None]
"""Gets each new token per sample of the batch; None for a sample that has ended."""


@dataclass(frozen=True)
class AskOptions:
    """How an answer is sought."""

    mode: Mode = "latent"
    max_new_tokens: int | None = None
    """None: what a bundle was made for; 256 for a checkpoint."""
    max_latent_steps: int | None = None
    """None: the model's own limit."""
    halting: Literal["adaptive", "fixed"] | None = None
    """None: the model's own way."""
    ignore_end: bool = False
    """Speak on to `max_new_tokens` whatever the model says: forced lengths, for profiling. Checkpoints only."""
    stop: Stop = field(default=Stop(), repr=False, compare=False)
    """When to end before the end."""


class Engine(Protocol):
    """Runs a reasoner."""

    name: str
    """torch, onnxruntime, tensorrt-rtx or tensorrt."""
    processor: Processor
    num_layers: int
    modes: tuple[Mode, ...]
    """What it can be asked in: without latent for a plain model, which has none."""
    note: str | None
    """What a user should know before asking, such as that the model was trained in another number type."""

    @property
    def dtype(self) -> str:
        """Number type of the weights, such as "bfloat16"; of a bundle its precision, such as "int4"."""
        ...

    def load(self) -> None:
        """Reads the weights now, where they would otherwise be read at the first question."""
        ...

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: AskOptions, on_token: OnToken | None = None
    ) -> list[Generated]:
        """Greedy answers, one per prompt.

        Raises:
            CapacityError: a prompt is larger than the engine was made for.
            TimeoutExceeded, Cancelled: `options.stop` ended it.
        """
        ...

    def baseline(self, mode: Mode) -> "Engine | None":
        """The engine of the checkpoint that this one declares as its baseline for `mode`; None where it declares
        none."""
        ...
