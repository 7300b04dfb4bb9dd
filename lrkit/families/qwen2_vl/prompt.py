"""What a plain folder of Qwen2-VL leaves unsaid: how text is split before the merges, and how a picture is shown."""

from collections.abc import Callable, Mapping
from typing import Any


class Qwen2VLPrompt:
    """Implements `PromptStyle`."""

    # tokenizer.json of these models holds the same.
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """The image token between those that start and end a picture; None where config.json names none."""
        keys = ("vision_start_token_id", "image_token_id", "vision_end_token_id")
        start, image, end = (name_of(config.get(key)) or "" for key in keys)
        return (image, f"{start}{image}{end}") if image else None


PART = Qwen2VLPrompt()
