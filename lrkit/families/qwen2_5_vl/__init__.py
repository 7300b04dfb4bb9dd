"""Qwen2.5-VL: as Qwen2-VL, with a tower that attends within windows of the picture in most of its layers."""
