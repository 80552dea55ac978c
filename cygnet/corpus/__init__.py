"""Raw files to clean documents.

`pipeline.prepare` does it all. The steps, in order: `find` (which files), `decode` (bytes to
text), `readers` (rows to documents), `normalize`, `filters`, `split` (what is held out), `dedup`,
`report`. `builtin` is the text that comes with Cygnet. Nothing here knows of tokens or models.
"""
