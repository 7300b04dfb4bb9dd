"""What training, export and the runtime must agree on: settings, prompts, samples, answers, scores. No torch."""
