"""Backbone families behind one protocol: one file or folder per family, one table row each."""
