"""Bundle to report: measuring suites, device ceilings and rendered results."""
