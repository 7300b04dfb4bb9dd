"""Pictures: from what a caller gives (path, bytes, array) to upright RGB, with bounds on size and time."""
