"""The tests. ONNX Runtime would report its sessions: it is told not to before anything here loads it."""

from lrkit.telemetry import turn_off

turn_off()
