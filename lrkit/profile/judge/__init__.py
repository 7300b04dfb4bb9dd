"""What was measured, judged: intervals, sweeps."""
