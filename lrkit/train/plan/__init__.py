"""What a training run would need and take, worked out without its weights: `lrkit train --plan`."""
