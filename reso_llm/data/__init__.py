"""Data: from files and hub datasets to windows of tokens.

Bottom up:

conversation  roles and messages                    sources     what --data names, to documents
layouts       chats inside one string, made of        files, hub    which files, and downloads
  markers, token_layouts, named_layouts             split       training and validation
rows, trees   one row, or a file of messages        tokenise    documents to files of tokens
containers    files to rows, made of                token_cache what is kept of that
  data_file, json_rows, tables                      prepare     all of this in one call
readers       one file to documents                 windows     batches of tokens
summary       what was read                         inspection  train.py --inspect
"""
