"""What a plain folder of SmolVLM2 leaves unsaid."""

from lrkit.families.idefics3.prompt import Idefics3Prompt

PART = Idefics3Prompt()
