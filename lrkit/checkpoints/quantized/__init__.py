"""Checkpoints whose weights are integers already: one file for each format, told apart by `quant_method`."""
