"""A question and its pictures to token ids and patches, and ids back to text."""
