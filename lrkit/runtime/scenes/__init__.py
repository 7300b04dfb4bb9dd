"""Pictures that are read once and asked about many times."""
