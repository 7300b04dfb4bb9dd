"""Gradient dynamics: what moves where while a model learns, and what its depth and its latents are good for."""
