"""Checkpoint to bundle: the ONNX program, its int4 encodings and its validation."""
