"""Idefics3, the family of SmolVLM: pictures in sub-images, a SigLIP tower, a Llama decoder, one position a token."""
