"""Qwen2-VL for an export."""
