"""Generation: prompts in, text and measurements out."""
