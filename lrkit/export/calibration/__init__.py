"""What a model multiplies its matrices with while it reads, thinks and speaks; for quantizers that ask for it."""
