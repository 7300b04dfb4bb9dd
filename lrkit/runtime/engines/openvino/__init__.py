"""Bundles on OpenVINO."""
