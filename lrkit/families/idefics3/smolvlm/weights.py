"""How SmolVLM2's language model and tower lie in its weights, for an export."""

from typing import Any

from lrkit.families.idefics3.weights import Idefics3Weights


class SmolVLMWeights(Idefics3Weights):
    """See export/weights/reader.py."""

    def _classes(self) -> tuple[Any, Any]:
        from transformers.models.smolvlm import modeling_smolvlm as made

        return made.SmolVLMVisionTransformer, made.SmolVLMConnector


PART = SmolVLMWeights()
