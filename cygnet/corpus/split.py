"""Which documents are held out: decided by a hash of the subject, never by the order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cygnet.corpus.document import Document
from cygnet.errors import UserError


def split_position(document: Document, seed: int = 0, words: bytes = b"") -> float:
    """Return a number in [0, 1) that depends on the document's title alone (or its words).

    Documents of one title, such as a dish's recipe and its article, share their position, so a
    held-out subject is held out wherever it occurs.

    Args:
        document: with a title or without.
        seed: another one gives other positions.
        words: a hash of the words, where one is known; the text itself is taken else.
    """
    if words and not document.title:
        digest = hashlib.sha256(f"{seed}\0".encode() + words).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
    subject = " ".join((document.title or document.text).casefold().split())
    digest = hashlib.sha256(f"{seed}\0{subject}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def heldout_limit(positions: Sequence[float], share: float) -> float:
    """Return the position under which documents are held out.

    That is `share`, unless no document lies under it: then the subject with the lowest position
    is held out, so that a small corpus can be measured too.

    Raises:
        UserError: all documents share one subject, so nothing can be held out.
    """
    ordered = sorted(set(positions))
    if ordered and ordered[0] < share:
        return share
    if len(ordered) < 2:
        raise UserError(
            f"all the text is {'one document' if len(positions) == 1 else 'of one title'}, and one "
            "more is needed, to measure on what was not learnt: give a second file, part the text "
            "by lines of <|endoftext|>, or cut it by a smaller --corpus.max-chars"
        )
    return ordered[1]
