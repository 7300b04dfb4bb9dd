"""The graphs of a program: layers, replay, routing, and the loops over them."""
