"""Qwen3-VL, the dense models: its parts, as families/table.py loads them by name."""
