"""Tokens to text as they come: never half a character, never the beginning of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from cygnet.text.tokenizer import Tokenizer

CONTROL_MARK = "\ufdd0"
"""Stands before and behind a control token in marked text; Unicode keeps it for inner use."""


class TextStream:
    """The text of one answer.

    What may be the beginning of a stop text is held back until that is known.

    Args:
        tokenizer: of the ids.
        stop: texts that end the answer and are no part of it.
        keep_special: leave control tokens in the text.
        mark_special: leave them in the text between two `CONTROL_MARK`, which ordinary text never
            holds then; they come whole.

    Attributes:
        stopped: a stop text has come.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        keep_special: bool = False,
        mark_special: bool = False,
    ) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._marks = mark_special
        self._skipped = set() if keep_special else set(tokenizer.special_ids.values())
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """Take one token in and return the text that is certain now."""
        if token in self._skipped:
            # It is no part of the text, and yet a person may name it as a stop.
            spelt = self._tokenizer.token_bytes(token).decode()
            self.stopped = self.stopped or any(stop in spelt for stop in self._stop)
            if self._marks and not self.stopped:
                given, self._held = self._held, ""
                return f"{given}{CONTROL_MARK}{spelt}{CONTROL_MARK}"
        elif not self.stopped:
            decoded = self._decoder.decode(self._tokenizer.token_bytes(token))
            self._held += decoded.replace(CONTROL_MARK, "\ufffd") if self._marks else decoded
        if self.stopped:
            return ""
        if found := [at for at in map(self._held.find, self._stop) if at >= 0]:
            given, self._held, self.stopped = self._held[: min(found)], "", True
            return given
        num_kept = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        certain = len(self._held) - num_kept
        given, self._held = self._held[:certain], self._held[certain:]
        return given

    def finish(self) -> str:
        """Return what was held back; the answer ends here."""
        if self.stopped and not self._held:
            return ""
        given = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return given


def text_stream(
    tokenizer: Tokenizer, ids: Iterable[int], stop: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the text of ids as they come, up to the first stop text.

    Joined, it is `tokenizer.decode(ids, skip_special=True)` up to there.
    """
    stream = TextStream(tokenizer, stop)
    for token in ids:
        if piece := stream.push(token):
            yield piece
        if stream.stopped:
            break
    if piece := stream.finish():
        yield piece


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text are the beginning of the stop text."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
