"""Which sequence each slot of the cache holds, and which slot a new request takes.

Running requests stand in the first slots, so that a decoding step reads a slice of the cache and
gathers nothing; whoever joins or leaves swaps places. A finished request's slot keeps its tokens
until the slot is needed: a prompt that begins with the same tokens reads only the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cygnet.generate.runner import Runner

MIN_SHARED_TOKENS = 16
"""A shorter common beginning is not worth waiting for another request that reads it."""

_NOTHING = -1
Tokens = NDArray[np.int64]


@dataclass(eq=False)
class Slot:
    """One sequence of the cache.

    Attributes:
        index: its place in the cache now.
        number: which of the slots it is, wherever it stands.
        num_tokens: how many it reads or has read.
        num_filled: how many of them have keys and values.
        draft_filled: how many have those of a draft model, where there is one.
        is_used: by a request that is not finished.
        last_used: a count that grows.
    """

    index: int
    number: int
    num_tokens: int = 0
    num_filled: int = 0
    draft_filled: int = 0
    is_used: bool = False
    last_used: int = 0


class SlotTable:
    """All slots of one or more caches that are laid out alike.

    Args:
        runners: whose caches follow every move.
        num_slots: of each.
    """

    def __init__(self, runners: Sequence[Runner], num_slots: int) -> None:
        self.slots = [Slot(index, index) for index in range(num_slots)]
        # What slot n reads or has read in row n, and -1 behind it.
        self._tokens = np.full((num_slots, 0), _NOTHING, np.int64)
        self._runners = runners
        self._clock = 0

    @property
    def num_free(self) -> int:
        """Slots that no request uses."""
        return sum(not slot.is_used for slot in self.slots)

    def take(self, prompt: Sequence[int]) -> Slot | None:
        """Give a free slot to a prompt, with as much of it filled as some slot has.

        Returns none where all slots are used, or where it pays to wait because another request is
        about to read the same beginning.
        """
        free = [slot for slot in self.slots if not slot.is_used]
        if not free:
            return None
        tokens = np.asarray(prompt, np.int64)
        # The last token is always read, since its logits are asked for.
        common = self._common(tokens[:-1])
        shared = {slot: min(common[slot.number], slot.num_filled) for slot in self.slots}
        source = max(self.slots, key=lambda slot: (shared[slot], not slot.is_used))
        for slot in self.slots:
            is_reading = slot.is_used and slot.num_filled < slot.num_tokens
            if is_reading and common[slot.number] >= shared[source] + MIN_SHARED_TOKENS:
                return None
        num_shared = shared[source]
        if not source.is_used and 2 * num_shared >= source.num_filled > 0:
            target = source
        else:
            target = min(free, key=lambda slot: slot.last_used)
            if num_shared and target is not source:
                for runner in self._runners:
                    runner.cache.copy(source.index, target.index, num_shared)
        self._note(target, tokens)
        target.num_filled, target.is_used = num_shared, True
        target.draft_filled = min(source.draft_filled, num_shared)
        return target

    def release(self, slot: Slot, tokens: Sequence[int]) -> None:
        """Free a slot; it keeps what it has read of `tokens`."""
        self._clock += 1
        # Nothing is kept of what was proposed behind the end.
        slot.num_filled = min(slot.num_filled, len(tokens))
        slot.draft_filled = min(slot.draft_filled, slot.num_filled)
        self._note(slot, np.asarray(tokens[: slot.num_filled], np.int64))
        slot.is_used, slot.last_used = False, self._clock

    def move(self, slot: Slot, index: int) -> None:
        """Put a slot in a place of the cache; the one that stood there takes its place."""
        other = self.slots[index]
        if other is slot:
            return
        num_tokens = max(slot.num_filled, other.num_filled)
        for runner in self._runners:
            runner.cache.swap(slot.index, index, num_tokens)
        self.slots[slot.index], self.slots[index] = other, slot
        other.index, slot.index = slot.index, index

    def _note(self, slot: Slot, tokens: Tokens) -> None:
        """Remember what a slot reads."""
        slot.num_tokens = len(tokens)
        missing = len(tokens) - self._tokens.shape[1]
        if missing > 0:
            behind = np.full((len(self.slots), missing), _NOTHING, np.int64)
            self._tokens = np.concatenate([self._tokens, behind], axis=1)
        self._tokens[slot.number, : len(tokens)] = tokens
        self._tokens[slot.number, len(tokens) :] = _NOTHING

    def _common(self, tokens: Tokens) -> list[int]:
        """Return for each slot, by number, how far what it reads begins as the tokens do."""
        length = min(len(tokens), self._tokens.shape[1])
        if not length:
            return [0] * len(self.slots)
        differs = self._tokens[:, :length] != tokens[:length]
        return np.where(differs.any(1), differs.argmax(1), length).tolist()
