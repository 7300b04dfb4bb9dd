"""SmolVLM2's config.json as lrkit reads it. Torch-free."""

from lrkit.families.idefics3.layout import LayoutReader

PART = LayoutReader("smolvlm", "SmolVLMForConditionalGeneration")
