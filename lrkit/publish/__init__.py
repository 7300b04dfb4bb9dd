"""Checkpoints and bundles as others find them: on the Hugging Face hub, with a card, and in plain transformers."""
