"""Training: the curriculum of stages, the loop and the checkpoint it leaves."""
