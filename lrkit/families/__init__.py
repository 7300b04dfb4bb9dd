"""The families of backbones: one folder a family, one row a family in table.py. No other room names a family."""
