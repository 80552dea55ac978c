"""Cygnet: raise a language model of your own, from raw text to a chat."""

__version__ = "0.1.0"
