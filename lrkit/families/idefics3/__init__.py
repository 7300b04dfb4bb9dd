"""Idefics3, the family of SmolVLM: pictures in sub-images, one-dimensional positions, a SigLIP tower, a Llama decoder."""
