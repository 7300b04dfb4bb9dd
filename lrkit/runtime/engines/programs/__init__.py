"""Answers by an exported program, whatever runs its graphs."""
