"""The engines that answer, by name: table.py. A package is imported when its engine is asked for."""
