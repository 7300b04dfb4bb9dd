"""Measuring: cases, their loop, meters."""
