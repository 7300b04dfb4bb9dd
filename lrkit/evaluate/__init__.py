"""Accuracy and step counts of a checkpoint or bundle, by mode."""
