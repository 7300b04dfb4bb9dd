"""Data sets that others published: of the Hugging Face hub, or as parquet, JSON and folders on this machine."""
