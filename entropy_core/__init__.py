"""Mathematics shared by the language model and the reactor: pure functions, no weights, no hidden state."""
