"""The model: saliency, replay, self-distillation, routing and the reasoner that wraps a backbone (torch)."""
