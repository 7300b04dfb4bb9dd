"""Samples and how they become batches: the embedded trail set, JSONL files, collation."""
