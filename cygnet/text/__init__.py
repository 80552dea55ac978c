"""From clean text to batches: tokenizer, chat encoding, token shards, packing, loader.

Also `forms`, the rules by which a poem or a recipe can be checked.
"""
