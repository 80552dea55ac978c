"""Tune a model by low-rank adapters: `cygnet sft --lora` under the name that people type."""

import sys

from cygnet.cli import main

if __name__ == "__main__":
    main([*sys.argv[1:], "--lora"], verb="sft")
