"""The server: an OpenAI-compatible API, and a page that shows each token as it is measured.

    request -> guard -> asked -> desk: one thread writes all texts, token by token -> events -> answer

docs/server.md has the table of parameters. The room needs the extra `web`.
"""
