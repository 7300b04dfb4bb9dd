"""What is asked and what comes back: arguments, `Answer`, the regions that were replayed, the drawn trace."""
