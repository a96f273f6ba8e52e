"""Data: from files and hub datasets to windows of tokens.

Bottom up: `conversation` (roles and messages) < `layouts` (chats inside one string) < `rows` and
`trees` (one row, or a file of messages, to documents) < `containers` (files to rows) < `readers`
(one file to documents) < `sources` (what --data names; `files` and `hub` find it) < `split` <
`tokenise` < `token_cache` < `prepare` < `windows`. `summary` counts what was read.
"""
