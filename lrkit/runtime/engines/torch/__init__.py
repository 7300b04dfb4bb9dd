"""Checkpoints on torch."""
