"""What `Reasoner.ask` returns, from the torch engine and from a bundle alike. Torch-free.

Place in the pipeline: engine -> `Answer` -> an application, `lrkit ask`, evaluation.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lrkit.contract.choosing import By
from lrkit.families.protocols import Size
from lrkit.pictures.input import ImageSource
from lrkit.runtime.answer.regions import Region
from lrkit.runtime.encode.fitting import Resized


@dataclass(frozen=True)
class Choice:
    """Which of the choices an answer is, and how that is known."""

    index: int | None
    """From 0; None where the model said freely what names none of them, or several."""
    text: str | None
    """Of that choice."""
    by: By
    """scored: the most probable one; first token: the same, of their first tokens alone; said: found in what the model
    said freely, because its program gives no probabilities there."""
    scores: tuple[float, ...] | None = None
    """Log probability of each choice, in nats: of its tokens, or per token where that was asked for; None where `by` is
    said."""
    greedy: tuple[bool, ...] | None = None
    """Of each choice, whether its tokens are those that the model prefers; None where `by` is said."""
    passes: int = 0
    """Forward passes that the scoring took, among `Answer.ar_steps`."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class Answer:
    """An answer, how it was reached and what that took."""

    text: str
    """Everything that was generated: explicit steps, if any, and the answer."""
    answer: str | None
    """The bare answer; None where the text names none."""
    mode: str
    """latent, cot or direct."""
    latent_steps: int = 0
    """Number of latent steps."""
    spoken_tokens: int = 0
    """Generated tokens, without the end token."""
    ar_steps: int = 0
    """Forward passes of the language model after the prefill, latent steps included."""
    prefilled_tokens: int = 0
    """Tokens of the prompt, visual ones included."""
    replayed_tokens: int = 0
    """Visual tokens replayed, over all latent steps."""
    depths: tuple[int, ...] = ()
    """Per layer: routed token-depths executed; 0 where a layer does not route."""
    step_depths: tuple[int, ...] = ()
    """Per latent step: the same over all its tokens and layers; empty where nothing routes or an engine cannot tell."""
    read_sizes: tuple[Size, ...] = ()
    """Where replay is fine, per picture: (width, height) in pixels at which the prompt read it; empty otherwise."""
    halting: str = "decided"
    """How thinking ended: decided (by the model), limit (most steps allowed), fixed (number given), none (no
    latent)."""
    regions: tuple[tuple[Region, ...], ...] = ()
    """Per latent step: the replayed parts of the pictures."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, such as preprocess, prefill, think, speak, total."""
    resized: tuple[Resized, ...] = ()
    """The pictures that a limit made smaller than they were given."""
    dtype: str = ""
    """Number type of the weights that answered: float32, bfloat16 or float16, or of a bundle fp32, fp16 or int4."""
    question: str = ""
    """What was asked."""
    images: tuple[ImageSource, ...] = field(default=(), repr=False)
    """The pictures it was asked about."""
    choice: Choice | None = None
    """Which choice it is; None where none were given."""

    def __str__(self) -> str:
        return self.text if self.answer is None else self.answer

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, for JSON."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "images"}
        values["depths"], values["step_depths"] = list(self.depths), list(self.step_depths)
        values["read_sizes"] = [list(size) for size in self.read_sizes]
        values["regions"] = [[region.to_dict() for region in step] for step in self.regions]
        values["timings"] = dict(self.timings)
        values["resized"] = [one.to_dict() for one in self.resized]
        values["choice"] = None if self.choice is None else self.choice.to_dict()
        return values

    def save_trace(self, path: Path | str, font: Path | str | None = None) -> None:
        """Draws the pictures once per latent step with the replayed regions on them, under question and answer.

        The ending decides the format: .png, .jpg, .webp, .bmp or .tif. `font` is a font file for the texts. The default
        is Pillow's own, with those of the system for characters that it lacks. A count replaces what no font has.

        Raises:
            UserError: `path` or `font` is no path.
            DataError: a picture can no longer be read, the path names no such format, or `font` is no font.
            FileError: the file cannot be written.
        """
        from lrkit.runtime.answer.arguments import file_path
        from lrkit.runtime.answer.trace import save_trace

        save_trace(self, file_path("path", path), None if font is None else file_path("font", font))
