"""Tests of one part each: on the CPU, in seconds."""
