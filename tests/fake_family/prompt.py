"""What a plain folder of the fake family leaves unsaid: nothing, but the names of its own tokens."""

from collections.abc import Callable, Mapping
from typing import Any


class RowwisePrompt:
    """Implements `PromptStyle`."""

    split = None
    plain_template = None
    latent_tokens: tuple[str, ...] = ()

    def picture_text(self, config: Mapping[str, Any], name_of: Callable[[Any], str | None]) -> tuple[str, str] | None:
        """The image token alone: nothing starts or ends a picture."""
        image = name_of(config.get("image_token_id"))
        return None if image is None else (image, image)


PART = RowwisePrompt()
