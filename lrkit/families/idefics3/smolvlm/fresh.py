"""SmolVLM2 of any size with random weights."""

from typing import Any, ClassVar

from lrkit.families.idefics3.fresh import FreshIdefics3
from lrkit.families.idefics3.geometry import SplitPictures
from lrkit.families.idefics3.smolvlm.geometry import SmolVLMPictures


class FreshSmolVLM(FreshIdefics3):
    """Implements `FreshModels`."""

    pictures: ClassVar[type[SplitPictures]] = SmolVLMPictures

    def _classes(self) -> tuple[Any, Any]:
        from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

        return SmolVLMConfig, SmolVLMForConditionalGeneration


PART = FreshSmolVLM()
