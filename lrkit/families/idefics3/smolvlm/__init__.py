"""SmolVLM2 on still pictures: the same architecture under other names of classes."""
