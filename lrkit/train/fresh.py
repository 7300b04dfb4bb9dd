"""A tiny model with random weights, and the processor of the trail data set that goes with it.

Place in the pipeline: a recipe whose `init` holds values instead of a checkpoint; everything else starts from a folder.
"""

from collections.abc import Sequence

from lrkit.contract.prompt import PromptFormat, SpecialTokens
from lrkit.data.tokenizer import build_word_tokenizer
from lrkit.data.trail import VOCABULARY
from lrkit.families.protocols import ModelSizes, ModelTokens
from lrkit.families.table import DEFAULT, fresh_models
from lrkit.model.backbone import Backbone
from lrkit.model.open_backbone import backbone_loader
from lrkit.runtime.encode.processor import Processor
from lrkit.train.recipe import FreshBackbone


def fresh_processor(words: Sequence[str] = VOCABULARY, family: str = DEFAULT) -> Processor:
    """Word-level tokenizer of `words`, 16-pixel visual tokens, plain prompt."""
    # A room is 16 pixels: four patches, merged into one visual token. Boards are drawn in whole tokens, so no picture
    # is ever resized. Smaller patches, or more tokens a room, read signs a little better and make prompt and replay two
    # to four times as long (docs/log.md).
    geometry = fresh_models(family).geometry(
        patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=256 * 256, plain=True
    )
    format = PromptFormat(between_turns=" {answer}" + SpecialTokens().eos)
    return Processor(build_word_tokenizer(words, markers=geometry.markers), geometry, format)


def fresh_backbone(values: FreshBackbone, processor: Processor) -> Backbone:
    """Random weights from torch's current generator."""
    models, tokenizer = fresh_models(values.family), processor.tokenizer
    sizes = ModelSizes(
        hidden_size=values.hidden_size, num_layers=values.num_layers, num_heads=values.num_heads,
        num_kv_heads=values.num_kv_heads, intermediate_size=values.intermediate_size,
        vocabulary=tokenizer.get_vocab_size(), tied_embeddings=True, vision_depth=values.vision_depth,
        vision_width=values.vision_width, vision_heads=values.vision_heads, vision_mlp_ratio=values.vision_mlp_ratio,
        rope_theta=10000.0, max_positions=values.max_positions,
    )  # fmt: skip
    tokens = ModelTokens(
        image=processor.image_id, eos=processor.eos_id, pad=processor.pad_id, unused=processor.latent_id,
        picture_start=tokenizer.token_to_id("<|vision_start|>"), picture_end=tokenizer.token_to_id("<|vision_end|>"),
    )  # fmt: skip
    return backbone_loader(values.family)(models.model(models.config(sizes, processor.geometry, tokens)))
