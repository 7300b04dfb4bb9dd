"""How far a rounded model is from the one in floats, phase by phase: prompt, each latent step, speech."""
