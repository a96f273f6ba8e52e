"""The server: an OpenAI-compatible API, and a page that shows each token as it is measured.

    request -> guard -> asked -> desk -> events -> answer

The desk is one thread that writes all texts, token by token. docs/server.md has the table of
parameters. The room needs the extra `web`.
"""
