"""Numbers against an independent reference."""
