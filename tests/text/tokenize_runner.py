"""Tokenize a file in small pieces: what `test_pieces` kills. Arguments: rows, file, folder of the
tokenizer, result, number of workers."""

import sys
from pathlib import Path

from cygnet.text import pieces
from cygnet.text.tokenize import tokenize_conversations, tokenize_documents
from cygnet.text.tokenizer import Tokenizer


def main() -> None:
    rows, file, folder, out, num_workers = sys.argv[1:]
    pieces.MIN_PIECE_BYTES = 20_000
    given = (Path(file), Tokenizer.load(folder), Path(out))
    if rows == "documents":
        tokenize_documents(*given, num_workers=int(num_workers))
    else:
        tokenize_conversations(*given, max_seq_len=200, num_workers=int(num_workers))


if __name__ == "__main__":
    main()
