"""Which training documents hold passages of held-out ones, by sampled runs of words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import Hashes, Ints
from cygnet.corpus.near import sorted_set

COMMON = 10
"""Runs of words in more training documents than this are common property (licences, notices), and
no sign that held-out text was copied."""
Phrases = Callable[[], Iterable[tuple[Hashes, Ints]]]
"""Gives the runs of words of all documents, some at a time, and the number of each one's document.
It is called twice, so that they need not be in memory together."""


def overlap_with(
    phrases_of: Phrases, is_heldout: NDArray[np.bool_], is_training: NDArray[np.bool_]
) -> tuple[Ints, Ints]:
    """Return what training documents share with held-out ones.

    Args:
        phrases_of: gives the runs of words.
        is_heldout: (documents), which ones are held out.
        is_training: (documents), which ones would be trained on.

    Returns:
        For each document how many of its runs of words held-out ones have, 0 where it is a single
        one, which is chance; and the held-out document that has most of them, or -1.
    """
    count = len(is_heldout)
    shared, most_like = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    held = [(values[is_heldout[of]], of[is_heldout[of]]) for values, of in phrases_of()]
    values, holders = (np.concatenate(arrays) for arrays in zip(*held, strict=True))
    order = np.lexsort((holders, values))
    values, holders = values[order], holders[order]
    known = sorted_set([values])
    if not len(known):
        return shared, most_like
    hits = []
    for found, of in phrases_of():
        found, of = found[is_training[of]], of[is_training[of]]
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        is_known = known[at] == found
        hits.append(sorted_set([at[is_known] * count + of[is_known]]))
    at, owners = np.divmod(np.concatenate(hits), count)
    is_rare = np.bincount(at, minlength=len(known))[at] <= COMMON
    at, owners = at[is_rare], owners[is_rare]
    shared += np.bincount(owners, minlength=count)
    shared[shared == 1] = 0
    # Each run counts for every held-out document that has it.
    begins = np.searchsorted(values, known)
    lengths = np.diff(begins, append=len(values))[at]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    holders = holders[np.repeat(begins[at], lengths) + within]
    _set_most_frequent(most_like, np.repeat(owners, lengths), holders)
    return shared, most_like


def _set_most_frequent(target: Ints, owners: Ints, holders: Ints) -> None:
    """Set for each owner the holder that stands beside it most often; of equals the last."""
    pairs = np.sort(owners * len(target) + holders)
    begins = np.flatnonzero(np.diff(pairs, prepend=-1))
    owners, holders = np.divmod(pairs[begins], len(target))
    by_count = np.argsort(np.diff(begins, append=len(pairs)), kind="stable")
    target[owners[by_count]] = holders[by_count]  # what is written last stays
