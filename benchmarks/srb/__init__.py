"""SRB against other places to stop, on long-form prompts: tokens, time and quality."""
