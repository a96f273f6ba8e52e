"""Runs of both models: checkpoints, logs, locks, command lines, a terminal."""
