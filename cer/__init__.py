"""Coherent Entropy Reactor."""
