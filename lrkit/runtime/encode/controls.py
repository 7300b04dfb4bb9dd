"""Refuses control tokens in a user's text: an image token in a question would shift every picture, and an end token
would end the turn. Torch-free.

lrkit decides what a control token is, not a flag in a file that a stranger may have written. Control tokens are those
that prompt.json names, and every added token that stands in the prompt around the question. Other tokens that are
flagged as special and look like marks (`<|video_pad|>`) are refused too: a model was trained to take them as control.
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from lrkit.contract.prompt import PromptFormat
from lrkit.errors import CheckpointError, DataError, clean
from lrkit.runtime.encode.tokenizer_files import guarded

_MARK = re.compile(r"<\S+>|\[\S+\]|</?s>")


class ControlTokens:
    """The control tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, format: PromptFormat, markers: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        names = format.tokens
        around = format.template + format.image + (format.bare_template or "") + (format.between_turns or "")
        used = {names.image, names.latent, names.eos, names.pad, *names.more_ends}
        # A marker that is no token of its own ("\n") is a text like any other.
        used |= {token.content for token in added.values() if token.content in markers and token.content.strip()}
        used |= {token.content for token in added.values() if token.content.strip() and token.content in around}
        marks = {token.content for token in added.values() if token.special and _MARK.fullmatch(token.content.strip())}
        self.texts = sorted(used | marks)
        """What a user's text must not hold."""
        found = {text: tokenizer.token_to_id(text) for text in self.texts}
        unknown = getattr(tokenizer.model, "unk_token", None)  # words read as this one are refused by name
        self._ids = {index: text for text, index in found.items() if index is not None and text != unknown}
        self._image_id = tokenizer.token_to_id(names.image)

    def refuse(self, text: str, what: str) -> None:
        """Raises where `text` holds a control token, as it stands or as the tokenizer reads it (it may change letters
        before it looks for tokens).

        Raises:
            DataError: it holds one; `what` is what it is, as "question".
        """
        for token in self.texts:
            if token in text:
                raise DataError(f"the {what} holds {token}, which only the prompt format may use; take it out")
        for index in self._encode(text):
            if index in self._ids:
                raise DataError(
                    f"the {what} holds something that is read as {self._ids[index]}, which only the prompt format may "
                    "use; take it out"
                )

    def check_prompt(self, ids: Sequence[int], question: str, num_images: int) -> None:
        """Holds a whole prompt against the number of its pictures.

        Raises:
            DataError: the question makes an image token together with the text around it.
            CheckpointError: the prompt's own text does not give one image token per picture.
        """
        if (found := ids.count(self._image_id)) == num_images:
            return
        if found > num_images and num_images == 0:
            raise DataError(f"the question {clean(question)[:60]!r} is read as a picture; write it in another way")
        raise CheckpointError(
            f"{num_images} pictures became {found} image tokens; tokenizer.json and prompt.json do not belong "
            "together, so copy both again"
        )

    def _encode(self, text: str) -> list[int]:
        with guarded("the text cannot be split into tokens", DataError, "check the text and the tokenizer"):
            return self._tokenizer.encode(text, add_special_tokens=False).ids
