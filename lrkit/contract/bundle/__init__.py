"""A bundle, the folder that `lrkit export` writes and every engine reads: manifest, inputs and outputs, limits, files."""
