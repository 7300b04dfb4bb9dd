"""Qwen2-VL: picture geometry, three-part positions, layout of the weights, the backbone on torch."""
