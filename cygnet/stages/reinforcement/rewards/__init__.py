"""Rewards that can be checked: plain functions of an answer and its prompt's row.

`builtin.py` names those that come with Cygnet; `judge.py` calls them, and a person's own.
"""
