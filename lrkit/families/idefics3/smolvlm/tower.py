"""SmolVLM2's vision tower in a program, for an export."""

from lrkit.families.idefics3.tower import Idefics3Tower

PART = Idefics3Tower()
