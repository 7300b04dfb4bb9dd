"""What several families share, torch-free: readers of config.json, weights of a decoder, pictures in merged patches."""
