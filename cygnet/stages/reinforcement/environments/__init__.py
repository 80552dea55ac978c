"""Worlds that answer the model: tools that it may call, over several turns.

`environment.py` has the interface and the tool environment, `tools.py` the tools of our own.
"""
