"""Distill a model into a smaller one: `cygnet distill` under the name that people type."""

from cygnet.cli import main

if __name__ == "__main__":
    main(verb="distill")
