"""The stages of the model: one file each, with its equation, state and both forms."""
