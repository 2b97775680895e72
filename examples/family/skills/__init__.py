"""Skills of the model family: each module makes prompts with their right answers."""
