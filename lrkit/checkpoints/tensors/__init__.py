"""Tensors in files, read without torch."""
