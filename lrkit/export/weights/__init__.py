"""Weights on their way into a program: read from a checkpoint tensor by tensor, quantized, written once."""
