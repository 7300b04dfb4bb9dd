"""What a plain folder of Qwen2.5-VL leaves unsaid: how text is split before the merges, and how a picture is shown."""

from lrkit.families.common.picture_between_tokens import PictureBetweenTokens

PART = PictureBetweenTokens()
