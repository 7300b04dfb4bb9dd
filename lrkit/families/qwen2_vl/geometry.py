"""How Qwen2-VL cuts pictures. Torch-free."""

from typing import ClassVar

from lrkit.families.common.merged_patches import MergedPatches


class ImageGeometry(MergedPatches):
    """Implements `Geometry`; the defaults are those of the published models."""

    family: ClassVar[str] = "qwen2_vl"
    processor_class: ClassVar[str] = "Qwen2VLProcessor"


PART = ImageGeometry
