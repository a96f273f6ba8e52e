"""Decoding: small objects between logits and the next token."""
