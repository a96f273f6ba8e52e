"""The conversation in a terminal: session, commands, panel."""
