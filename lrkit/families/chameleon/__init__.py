"""Chameleon: pictures as codes of a vector quantizer, which are words of the vocabulary, in one language model."""
