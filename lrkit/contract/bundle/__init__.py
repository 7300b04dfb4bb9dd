"""A bundle, the folder that `lrkit export` writes and all engines read: manifest, inputs, outputs, limits, files."""
