"""Seeded inputs of every kind that lrkit reads, and what must hold for each: an answer or one sentence."""
