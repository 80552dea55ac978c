"""One verb of the command line a file: its settings, and what it does with them."""
