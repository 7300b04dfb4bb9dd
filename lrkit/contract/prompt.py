"""The words around a question, its steps and its answer: `PromptFormat`, kept as `prompt.json`. Torch-free.

Place in the pipeline: read by `Processor`, which turns it into token ids; by the scorer, which finds the answer in
spoken text by it; by export, which writes it into the bundle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from lrkit.config import Config
from lrkit.contract.generated import Mode


class SpecialTokens(Config):
    """Names of the tokens with a meaning; each is one entry of the vocabulary."""

    image: str = "<|image_pad|>"
    """Stands for one visual token."""
    latent: str = "<|latent|>"
    """Said by the model to think one more latent step; added to the vocabulary where it is missing."""
    eos: str = "<|im_end|>"
    """Ends the answer; what training ends it with."""
    more_ends: tuple[str, ...] = ()
    """Other tokens that end it too, where a model was trained with several."""
    pad: str = "<|pad|>"
    """Fills a batch."""


@dataclass(frozen=True)
class Turn:
    """A question about pictures and what was said to it: text of a conversation."""

    question: str
    answer: str
    """As spoken, the words of the answer template included. Latents are not kept, as chat templates drop the thinking
    of earlier turns."""


class PromptFormat(Config):
    """How a sample becomes text."""

    template: str = "{images}{question}"
    """The whole prompt; {images} becomes `image` once per picture. May hold a full chat text."""
    bare_template: str | None = None
    """The whole prompt of a question without pictures; null: `template` with nothing for {images}."""
    between_turns: str | None = None
    """The text from a question to the next one of a conversation; {answer} becomes what was said. Pictures stand before
    the first question. null: a format without follow-ups."""
    image: str = "<|vision_start|><|image_pad|><|vision_end|>"
    """The text of one picture; its one image token is repeated for every visual token."""
    step_separator: str = "\n"
    """Between spoken pieces: two steps, or the last step and the answer."""
    answer: str = "Answer: {answer}"
    """The answer as it is spoken. The text before {answer} marks the answer and is what the mode `direct` forces."""
    tokens: SpecialTokens = SpecialTokens()
    """Names of the special tokens."""

    @model_validator(mode="after")
    def _placeholders_in_place(self) -> Self:
        problems = []
        for field, name in (("template", "{images}"), ("template", "{question}"), ("answer", "{answer}")):
            if (count := getattr(self, field).count(name)) != 1:
                problems.append(f"{field} holds {name} {count} times; it must hold it exactly once")
        if (count := self.image.count(self.tokens.image)) != 1:
            problems.append(f"image holds {self.tokens.image} {count} times; it must hold it exactly once")
        if self.bare_template is not None and (count := self.bare_template.count("{question}")) != 1:
            problems.append(f"bare_template holds {{question}} {count} times; it must hold it exactly once")
        if self.between_turns is not None and (count := self.between_turns.count("{answer}")) != 1:
            problems.append(f"between_turns holds {{answer}} {count} times; it must hold it exactly once")
        if self.between_turns is not None and not problems and not self.asks_behind_pictures:
            problems.append(
                "between_turns is given, but template has {images} behind {question}; leave between_turns out"
            )
        if not self.answer.partition("{answer}")[0].strip():
            problems.append("answer has no text before {answer}; give it a marker such as 'Answer:'")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def answer_marker(self) -> str:
        """What is said before the answer, without the space that belongs to the answer: "Answer:"."""
        return self.answer.partition("{answer}")[0].rstrip()

    @property
    def asks_behind_pictures(self) -> bool:
        """Whether the question stands behind the pictures, so that these can be read before it is known."""
        return self.template.index("{images}") < self.template.index("{question}")

    def prompt_text(self, question: str, num_images: int, earlier: Sequence[Turn] = ()) -> str:
        """The prompt as text, each picture as one `image` text; `earlier` turns need `between_turns`."""
        bare = self.bare_template if num_images == 0 else None
        before, _, after = (self.template if bare is None else bare).partition("{question}")
        images = self.image * num_images
        said, _, asked = (self.between_turns or "").partition("{answer}")
        told = "".join(turn.question + said + turn.answer + asked for turn in earlier)
        return before.replace("{images}", images) + told + question + after.replace("{images}", images)

    def as_spoken(self, text: str, mode: Mode) -> str:
        """The words of a finished turn: what was said, and in the mode `direct` the answer's beginning, which stood in
        the prompt."""
        return self.answer.partition("{answer}")[0] + text if mode == "direct" else text

    def answer_parts(self, answer: str) -> tuple[str, str]:
        """(marker, the rest with its leading space), encoded apart so that the marker is always the same ids."""
        before, _, after = self.answer.partition("{answer}")
        return self.answer_marker, before[len(self.answer_marker) :] + answer + after

    def find_answer(self, spoken: str, mode: Mode) -> str | None:
        """The answer in what was spoken, without the template's own end.

        It stands behind the last answer marker. Explicit steps without a marker name no answer: None. In the mode
        `direct` the prompt held the marker, and after latents there need be none, as no step is spoken that it would
        have to be told from: there all that was said is the answer.
        """
        _, marker, rest = ("", "", spoken) if mode == "direct" else spoken.rpartition(self.answer_marker)
        if not marker and mode == "cot":
            return None
        behind = self.answer.partition("{answer}")[2].strip()
        return rest.strip().removesuffix(behind).strip() if behind else rest.strip()
