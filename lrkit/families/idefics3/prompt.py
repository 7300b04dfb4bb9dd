"""What a plain folder of Idefics3 leaves unsaid: a picture is shown as the image token alone, and its markers come
later; a token that nothing uses serves as the latent one.
"""

from collections.abc import Callable, Mapping
from typing import Any


class Idefics3Prompt:
    """Implements `PromptStyle`."""

    split = None
    plain_template = None
    # Every row of the published embeddings has its token. The older vocabulary has no reserved ones; its last token
    # stands in notebooks alone.
    latent_tokens: tuple[str, ...] = ("<|reserved_special_token_0|>", "<empty_output>")

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """The image token; None where config.json names none."""
        image = name_of(config.get("image_token_id"))
        return None if image is None else (image, image)


PART = Idefics3Prompt()
