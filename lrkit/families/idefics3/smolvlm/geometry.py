"""How SmolVLM2 cuts pictures: as Idefics3. Torch-free."""

from typing import ClassVar

from lrkit.families.idefics3.geometry import SplitPictures


class SmolVLMPictures(SplitPictures):
    """Implements `Geometry`."""

    family: ClassVar[str] = "smolvlm"
    types: ClassVar[tuple[str, ...]] = (
        "SmolVLMImageProcessor",
        "SmolVLMImageProcessorFast",
        "SmolVLMImageProcessorPil",
    )
    processor_class: ClassVar[str] = "SmolVLMProcessor"


PART = SmolVLMPictures
