"""How a plain folder shows a picture between two tokens that config.json names: the part `prompt` of families that
descend from one tokenizer. Torch-free.
"""

from collections.abc import Callable, Mapping
from typing import Any


class PictureBetweenTokens:
    """Implements `PromptStyle`: what such a folder leaves unsaid."""

    # tokenizer.json of these models holds the same.
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    plain_template = None
    latent_tokens: tuple[str, ...] = ()

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """The image token between those that start and end a picture; None where config.json names none."""
        keys = ("vision_start_token_id", "image_token_id", "vision_end_token_id")
        start, image, end = (name_of(config.get(key)) or "" for key in keys)
        return (image, f"{start}{image}{end}") if image else None
