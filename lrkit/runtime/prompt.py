"""The words around a question, its steps and its answer: `PromptFormat`, kept as `prompt.json`. Torch-free.

Place in the pipeline: read by `Processor`, which turns it into token ids; by the scorer, which finds the answer in
spoken text by it; by export, which writes it into the bundle.
"""

import json
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from lrkit.config import Config
from lrkit.errors import CheckpointError, require
from lrkit.model.generated import Mode

_QUESTION_MARK = "lrkit-question-goes-here"


class SpecialTokens(Config):
    """Names of the tokens with a meaning; each is one entry of the vocabulary."""

    image: str = "<|image_pad|>"
    """Stands for one visual token."""
    latent: str = "<|latent|>"
    """Said by the model to think one more latent step; added to the vocabulary where it is missing."""
    eos: str = "<|im_end|>"
    """Ends the answer."""
    pad: str = "<|pad|>"
    """Fills a batch."""


class PromptFormat(Config):
    """How a sample becomes text."""

    template: str = "{images}{question}"
    """The whole prompt; {images} becomes `image` once per picture. May hold a full chat text."""
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
        if not self.answer.partition("{answer}")[0].strip():
            problems.append("answer has no text before {answer}; give it a marker such as 'Answer:'")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def answer_marker(self) -> str:
        """What is said before the answer, without the space that belongs to the answer: "Answer:"."""
        return self.answer.partition("{answer}")[0].rstrip()

    def prompt_text(self, question: str, num_images: int) -> str:
        """The prompt as text, each picture as one `image` text."""
        before, _, after = self.template.partition("{question}")
        images = self.image * num_images
        return before.replace("{images}", images) + question + after.replace("{images}", images)

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

    @classmethod
    def from_chat_template(cls, folder: Path) -> Self:
        """The format of a Hugging Face folder: its chat template around one user turn, its end and padding tokens.

        Without a chat template the plain default is taken. The package jinja2, which renders one, comes with torch; it
        is needed for folders that lrkit did not write only.

        Raises:
            CheckpointError: the template cannot be rendered, or shows a picture in an unknown way.
            MissingExtraError: there is a template and jinja2 is not installed; another prompt would be a silent change.
        """
        config = read_json(folder / "tokenizer_config.json", missing_ok=True)
        tokens = SpecialTokens(**_named_tokens(config))
        source = _chat_template(folder, config)
        if source is None:
            return cls(tokens=tokens)
        require("jinja2", "train")
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        content = [{"type": "image"}, {"type": "text", "text": _QUESTION_MARK}]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            text = environment.from_string(source).render(
                messages=[{"role": "user", "content": content}],
                add_generation_prompt=True,
                eos_token=tokens.eos,
                pad_token=tokens.pad,
            )
        except TemplateError as error:
            raise CheckpointError(
                f"{folder}: the chat template cannot be rendered ({error}); add a prompt.json"
            ) from error
        image = cls.model_fields["image"].default
        if text.count(image) != 1 or text.count(_QUESTION_MARK) != 1:
            raise CheckpointError(f"{folder}: the chat template does not show a picture as {image}; add a prompt.json")
        # A brace in the chat text is harmless: only the two placeholders are ever replaced.
        return cls(template=text.replace(image, "{images}").replace(_QUESTION_MARK, "{question}"), tokens=tokens)


def _named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """End and padding token of a `tokenizer_config.json`; a token there is a text or a mapping with `content`."""
    found = {}
    for field, key in (("eos", "eos_token"), ("pad", "pad_token")):
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            found[field] = token
    return found


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The Jinja text, from wherever the library's versions have put it."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(folder / "chat_template.json", missing_ok=True).get(
        "chat_template", config.get("chat_template")
    )
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template


def read_json(path: Path, missing_ok: bool = False) -> dict[str, Any]:
    """The mapping in a JSON file of a checkpoint folder; empty where it is missing and may be.

    Raises:
        CheckpointError: the file is missing, not JSON, or not a mapping.
    """
    if missing_ok and not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); give a complete checkpoint folder"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}); copy the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__} where a mapping belongs; copy the file again")
    return values
