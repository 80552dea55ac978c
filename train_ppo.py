"""Raise what a reward model gives: `cygnet ppo` under the name that people of this field type."""

from cygnet.cli import main

if __name__ == "__main__":
    main(verb="ppo")
