"""Bundles by their TensorRT engines."""
