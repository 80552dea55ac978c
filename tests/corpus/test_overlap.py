from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.overlap import COMMON, overlap_with

DOCUMENTS = st.lists(
    st.tuples(st.sampled_from(["held", "train", "gone"]), st.lists(st.integers(0, 12), max_size=8)),
    min_size=1,
    max_size=16,
)


@given(DOCUMENTS, st.integers(1, 4))
def test_shared_runs_are_counted_as_the_definition_says(
    documents: list[tuple[str, list[int]]], num_parts: int
) -> None:
    parts = np.array_split(np.arange(len(documents)), num_parts)
    runs = [np.array(values, np.uint64) for _, values in documents]

    def phrases_of() -> list[tuple[np.ndarray, np.ndarray]]:
        return [
            (
                np.concatenate([np.empty(0, np.uint64), *(runs[i] for i in part)]),
                np.repeat(part, [len(runs[i]) for i in part]).astype(np.int64),
            )
            for part in parts
        ]

    sides = np.array([side for side, _ in documents])
    shared, most_like = overlap_with(phrases_of, sides == "held", sides == "train")
    held = {i: Counter(values) for i, (side, values) in enumerate(documents) if side == "held"}
    training = {i: set(values) for i, (side, values) in enumerate(documents) if side == "train"}
    often = Counter(value for values in training.values() for value in values)
    for i in range(len(documents)):
        own = {value for value in training.get(i, ()) if often[value] <= COMMON}
        by_holder = {j: sum(runs[value] for value in own) for j, runs in held.items()}
        count = len({value for value in own if any(value in runs for runs in held.values())})
        assert shared[i] == (count if count > 1 else 0)
        most = max(by_holder.values(), default=0)
        assert by_holder[most_like[i]] == most if most else most_like[i] == -1
