"""What a program is made for: limits, precision, dialect."""
