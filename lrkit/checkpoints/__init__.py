"""Checkpoint folders as files: where they are, what they must hold, read without torch before any weight is loaded."""
