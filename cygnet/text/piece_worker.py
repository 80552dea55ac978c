"""A process that encodes pieces of a file: those of `cygnet.text.pieces`, sent on standard input.

It answers each with a line of JSON, and ends at once with its standard input, which is to say with
the process that started it, however that one ended.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from cygnet.errors import UserError
from cygnet.text.pieces import Piece, Work, read_piece
from cygnet.text.tokenize import make_encoder


def main(folder: str) -> None:
    """Encode pieces into a work folder until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started us sees to it
    gc.disable()  # nothing here makes cycles, and walks over many lists of numbers cost time
    replies = sys.stdout.buffer
    sys.stdout = sys.stderr
    pieces: queue.Queue[Piece] = queue.Queue(1)
    threading.Thread(target=_receive, args=(sys.stdin.buffer, pieces), daemon=True).start()
    work = Work(Path(folder))
    encoder = make_encoder(work.load_tokenizer(), work.job())
    while True:
        piece = pieces.get()
        answer: dict[str, Any] = {"num_lines": piece.content.count(b"\n")}
        try:
            work.write(piece.number, encoder.encode(piece))
        except UserError as error:
            answer = {"refused": str(error)}
        replies.write(json.dumps(answer).encode() + b"\n")
        replies.flush()


def _receive(stream: IO[bytes], pieces: queue.Queue[Piece]) -> None:
    while (piece := read_piece(stream)) is not None:
        pieces.put(piece)
    os._exit(0)  # also in the middle of a piece: whoever wanted it is gone
