"""The builder itself. Nothing else of lrkit is imported here: the files also become the script for bare devices."""
