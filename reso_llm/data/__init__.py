"""Data: from files and hub datasets to windows of tokens."""
