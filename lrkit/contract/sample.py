"""One question about pictures, with its chain of thought: what every data set of lrkit yields.

Place in the pipeline: trail / jsonl / hub data -> `Sample` -> `collate` -> model. Imports no torch.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lrkit.errors import UserError, clean, one_line
from lrkit.pictures.input import ImageSource

Spoken = Literal["rest", "none", "bare"]
"""What is spoken of a sample besides its latents: rest, the steps that no latent stands for, then the answer behind its
marker; none, the answer alone, behind a prompt that ends with the marker; bare, the answer alone, without marker."""


@dataclass(frozen=True)
class Earlier:
    """What was asked about the same pictures before, with its answer; told to the model as text."""

    question: str
    steps: tuple[str, ...]
    """Spoken before the answer where steps are spoken."""
    answer: str


@dataclass(frozen=True)
class Sample:
    """A question, the pictures it is about (none, one or several), the steps that lead to its answer, the answer."""

    images: tuple[ImageSource, ...]
    """Pictures, in the order in which the prompt shows them."""
    question: str
    """What is asked."""
    steps: tuple[str, ...]
    """Explicit reasoning steps, one sentence or more each; may be empty."""
    answer: str
    """The bare answer, without the words of the answer template."""
    id: str = ""
    """Name of the sample within its data set."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What else is known about it (hops, split, source line); never shown to the model."""
    choices: tuple[str, ...] = ()
    """What it may be answered with, in the order of their letters; the question lists them already. Empty: an open
    question."""
    earlier: tuple[Earlier, ...] = ()
    """Turns of the conversation that the question follows up; empty: it is the first."""

    @property
    def place(self) -> str:
        """Where it is found: file and line, or its name; empty where it has neither."""
        if "file" in self.info and "line" in self.info:
            return f"{clean(str(self.info['file']))}:{self.info['line']}"
        return f"sample {one_line(self.id, 60)}" if self.id else ""


@contextmanager
def naming(sample: Sample) -> Generator[None]:
    """A context in which an error about the sample names its place."""
    try:
        yield
    except UserError as error:
        if not sample.place:
            raise
        raise type(error)(f"{sample.place}: {error}") from error
