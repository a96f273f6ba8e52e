"""Mathematics shared by the language model and the reactor.

Pure functions on batched tensors: no weights, no hidden state, no global random generator.
Import the module you need: ``from entropy_core import kuramoto``.
"""
