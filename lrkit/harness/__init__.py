"""lrkit as a model of evaluation harnesses that others wrote."""
