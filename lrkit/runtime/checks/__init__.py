"""What `lrkit validate` looks at: bundles and checkpoints."""
