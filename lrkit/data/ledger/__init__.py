"""Rendered tables with questions of one to six steps: printed and handwritten, drawn without end."""
