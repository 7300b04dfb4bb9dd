"""Whether latents do anything: interventions on them, and what becomes of the answers."""
