"""Training: objective, optimizers, loop, validation."""
