"""What a plain folder of Chameleon leaves unsaid: how a picture is shown, and how a turn is written without a chat
template, which no published size has."""

from collections.abc import Callable, Mapping
from typing import Any

from lrkit.families.chameleon.vocabulary import IMAGE

_START, _END = "<racm3:break>", "<eoss>"
_TURN = "<reserved08706>"
"""Ends a turn of the user; the answer follows."""


class ChameleonPrompt:
    """Implements `PromptStyle`."""

    split = None
    plain_template = "{question}{images}" + _TURN
    latent_tokens: tuple[str, ...] = ("<reserved08708>",)

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """The image token between those that start and end a picture, as transformers' processor writes it."""
        return IMAGE, f"{_START}{IMAGE}{_END}"


PART = ChameleonPrompt()
