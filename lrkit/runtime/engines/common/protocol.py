"""What every engine offers: encoded prompts in, generated tokens with their history out, and what it is. Torch-free.

Engines: onnxruntime/engine.py runs a bundle on ONNX Runtime and tensorrt/engine.py by its TensorRT engines, both over
program_engine.py; torch/engine.py runs a checkpoint (the one file here that imports torch, and only when it is asked
for).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from lrkit.contract.bundle.bundle_folder import Bundle
from lrkit.contract.bundle.manifest import ProgramEntry
from lrkit.contract.carried import BeforeStep
from lrkit.contract.choosing import Candidates
from lrkit.contract.generated import Generated, Mode
from lrkit.contract.settings import ReasonerSettings
from lrkit.runtime.encode.looked import Looked
from lrkit.runtime.encode.processor import EncodedPrompt, Processor
from lrkit.runtime.engines.common.model_counts import ModelCounts
from lrkit.runtime.engines.common.stopping import Stop

OnToken = Callable[[list[int | None]], None]
"""Gets each new token per sample of the batch; None for a sample that has ended."""


Phases = Literal["inside", "host", "differences"]
"""Who can tell prefill, thinking and speech apart: the engine itself, with the vision tower; the host's loop around the
graphs of the form step; or only the difference of two runs of which one stops earlier."""

NEVER = Stop()


@dataclass(frozen=True)
class AskOptions:
    """How to answer."""

    mode: Mode = "latent"
    max_new_tokens: int | None = None
    """None: what a bundle was made for; 256 for a checkpoint."""
    max_latent_steps: int | None = None
    """None: the model's own limit."""
    halting: Literal["adaptive", "fixed"] | None = None
    """None: the model's own way."""
    ignore_end: bool = False
    """Generate `max_new_tokens`, past any end token: forced lengths, for profiling. Checkpoints only."""
    candidates: Candidates | None = None
    """The answer is one of these; for one prompt at a time. An engine that can score them gives `Generated.scored`, and
    else answers freely."""
    stop: Stop = field(default=NEVER, repr=False, compare=False)
    """When to stop early."""
    before_step: BeforeStep | None = field(default=None, repr=False, compare=False)
    """Sees, and may change, what each latent step starts from (lrkit/contract/carried.py). Checkpoints, whose steps are
    then not recorded, and programs of the form step."""


class Probe(Protocol):
    """Seconds spent in the vision tower, where an engine can tell them from the rest of the prefill."""

    key: int
    """Equal for probes of one tower, of which one is enough."""

    def take(self) -> float:
        """The seconds since the last call."""
        ...

    def installed(self) -> AbstractContextManager[None]:
        """A context in which the probe counts."""
        ...


class WordHead(Protocol):
    """What hidden states say as words."""

    def logits(self, hidden_ND: np.ndarray) -> np.ndarray:
        """float32 (N, W) by the model's own head; the least there is for `<|latent|>`, which is no word."""
        ...

    def nearest(self, hidden_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each state as the latent that it becomes: the word whose embedding is nearest by angle (N,), the cosine
        between the two (N,), and their distance over the latent's length (N,)."""
        ...


class Engine(Protocol):
    """Runs a reasoner. Engines of bundles derive from `ProgramEngine`, which has all of this."""

    name: str
    """As its row in lrkit/runtime/engines/table.py."""
    processor: Processor
    num_layers: int
    modes: tuple[Mode, ...]
    """The modes it can be asked in. A plain model lacks latent."""
    note: str | None
    """What a user should know before asking, for example that the model was trained in another number type."""

    @property
    def dtype(self) -> str:
        """Number type of the weights, such as "bfloat16"; of a bundle its precision, such as "int4"."""
        ...

    @property
    def products(self) -> str | None:
        """Number type of its products of floats where the engine is told one: f32, bf16 or f16. None: that of the
        weights, or of the program."""
        ...

    @property
    def place(self) -> str:
        """Where it runs: cpu, cuda, cuda:1, or the name of another device."""
        ...

    @property
    def settings(self) -> ReasonerSettings:
        """The settings that the weights were made for."""
        ...

    @property
    def bundle(self) -> Bundle | None:
        """The bundle it runs, with replay, routing and the end of an answer compiled in. None for a checkpoint, whose
        settings can be changed."""
        ...

    @property
    def entry(self) -> ProgramEntry | None:
        """The program of the bundle; None for a checkpoint."""
        ...

    @property
    def phases(self) -> Phases:
        """How the phases of an answer can be told apart."""
        ...

    @property
    def threads(self) -> int | None:
        """CPU threads of one operator, where `use_threads` can change them; None where they were fixed before."""
        ...

    @property
    def cuda_graphs(self) -> bool | None:
        """Whether steps are recorded; None where that is not for lrkit to choose."""
        ...

    @property
    def attention(self) -> str | None:
        """Kernels of attention, by the names of transformers; None where a program has its own."""
        ...

    def load(self) -> None:
        """Reads the weights now instead of at the first question."""
        ...

    def generate(
        self, prompts: Sequence[EncodedPrompt], options: AskOptions, on_token: OnToken | None = None
    ) -> list[Generated]:
        """Greedy answers, one per prompt. A prompt with `looked` is read behind that: only the ids from `picture_part`
        on are read, and its patches are not. Equal to the whole prompt: bit for bit on torch in float32.

        Raises:
            CapacityError: a prompt is larger than the engine was made for.
            TimeoutExceeded, Cancelled: `options.stop` ended it.
        """
        ...

    def look(self, prompt: EncodedPrompt, stop: Stop = NEVER) -> Looked:
        """Reads the first `picture_part` ids of a prompt and its pictures; what follows these ids is ignored.

        Raises:
            UserError: a program that was exported without scenes.
            CapacityError: as `generate`.
            TimeoutExceeded, Cancelled: `stop` ended it.
        """
        ...

    def looked_of(self, arrays: Mapping[str, np.ndarray], prompt: EncodedPrompt) -> Looked:
        """What `Looked.arrays` gave, as this engine reads it, for the picture part of `prompt` (whose patches are not
        needed). The arrays may be a stranger's.

        Raises:
            DataError: names, shapes or types are not those that a look at such pictures leaves.
        """
        ...

    @property
    def digest(self) -> str:
        """Names what decides about a look, such as the weights and settings, or a program's files: equal digests,
        equal looks. May take seconds when first asked for."""
        ...

    def baseline(self, mode: Mode) -> "Engine | None":
        """The engine of the checkpoint that this one declares as its baseline for `mode`; None where it declares
        none."""
        ...

    def patience(self, tokens: int | None = None) -> float | None:
        """Seconds after which a question with at most `tokens` passes counts as endless. None where lrkit itself ends
        it."""
        ...

    def counts(self) -> ModelCounts:
        """Sizes of its weights."""
        ...

    def use_threads(self, threads: int | None) -> None:
        """Sets the threads. Does nothing for None, or where `threads` is None."""
        ...

    def begin_peak(self) -> None:
        """Starts to measure the peak of device memory."""
        ...

    def peak_bytes(self) -> int | None:
        """Most device memory in use since `begin_peak`; None where it is not known."""
        ...

    def vision_probe(self) -> Probe | None:
        """A new probe of the vision tower; None where it cannot be told apart within a run."""
        ...

    def word_head(self) -> WordHead | None:
        """The head and the embeddings; None where a program has them inside."""
        ...

    def with_settings(self, settings: ReasonerSettings) -> "Engine":
        """The same weights under other settings.

        Raises:
            UserError: they are compiled in.
        """
        ...

    def with_adapter(self, name: str) -> "Engine":
        """The same base with another adapter.

        Raises:
            UserError: it has none of that name, or cannot switch.
        """
        ...

    def with_cuda_graphs(self, wanted: bool) -> "Engine":
        """The same weights with or without recorded steps.

        Raises:
            UserError: it cannot record steps, or has no GPU.
        """
        ...
