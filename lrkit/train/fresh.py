"""A tiny Qwen2-VL with random weights, and the processor of the trail data set that goes with it.

Place in the pipeline: a recipe whose `init` holds values instead of a checkpoint; everything else starts from a folder.
"""

from tokenizers import Tokenizer
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from lrkit.contract.prompt import PromptFormat
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY
from lrkit.families.qwen2_vl.backbone import Qwen2VLBackbone
from lrkit.families.qwen2_vl.geometry import ImageGeometry
from lrkit.runtime.encode.processor import Processor
from lrkit.train.recipe import FreshBackbone

# A room is 16 pixels: four patches, merged into one visual token as Qwen2-VL merges its own. Boards are drawn in whole
# tokens, so no picture is ever resized. Smaller patches, or more tokens a room, read signs a little better and make
# prompt and replay two to four times as long (docs/log.md).
GEOMETRY = ImageGeometry(
    patch_size=8,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=16 * 16,
    max_pixels=256 * 256,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)


def trail_processor() -> Processor:
    """Word-level tokenizer, 16-pixel visual tokens, plain prompt."""
    return Processor(build_word_tokenizer(VOCABULARY), GEOMETRY, PromptFormat())


def fresh_backbone(values: FreshBackbone, processor: Processor) -> Qwen2VLBackbone:
    """Random weights from torch's current generator."""
    return Qwen2VLBackbone(Qwen2VLForConditionalGeneration(_config(values, processor)))


def _config(values: FreshBackbone, processor: Processor) -> Qwen2VLConfig:
    tokenizer, geometry = processor.tokenizer, processor.geometry
    half_head = values.hidden_size // values.num_heads // 2
    # Qwen2-VL's own proportions: a quarter of the rotary pairs for time, the rest shared by height and width.
    time = half_head // 4
    height = (half_head - time) // 2
    return Qwen2VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": values.hidden_size,
            "intermediate_size": values.intermediate_size,
            "num_hidden_layers": values.num_layers,
            "num_attention_heads": values.num_heads,
            "num_key_value_heads": values.num_kv_heads,
            "max_position_embeddings": values.max_positions,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": processor.eos_id,
            "pad_token_id": processor.pad_id,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [time, height, half_head - time - height],
            },
        },
        vision_config={
            "depth": values.vision_depth,
            "embed_dim": values.vision_width,
            "hidden_size": values.hidden_size,
            "num_heads": values.vision_heads,
            "mlp_ratio": values.vision_mlp_ratio,
            "patch_size": geometry.patch_size,
            "spatial_merge_size": geometry.merge_size,
            "temporal_patch_size": geometry.temporal_patch_size,
        },
        image_token_id=processor.image_id,
        # No video ever enters; transformers wants an id that no prompt holds.
        video_token_id=processor.latent_id,
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None
    return found
