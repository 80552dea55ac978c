import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus import near
from cygnet.corpus.near import Candidates, Compared, Places, compare_in_tasks, near_duplicates
from cygnet.corpus.scale import ScaleConfig

NUM_TEXTS = 40


def some_texts(seed: int) -> list[np.ndarray]:
    """Words of texts in blocks of four, of which every second one is like one before it."""
    draw = random.Random(seed)
    texts: list[list[int]] = []
    for i in range(NUM_TEXTS):
        if i % 2:
            words = list(draw.choice(texts[-(i % 4) :]))
            words[draw.randrange(len(words))] = draw.randrange(1 << 32)
        else:
            words = [draw.randrange(1 << 32) for _ in range(draw.randint(1, 30))]
        texts.append(words)
    return [np.array(words, np.uint32) for words in texts]


def candidates_of(seed: int, num_pairs: int) -> Candidates:
    draw = random.Random(seed)
    pairs = [(i, j) for i, j in itertools.combinations(range(NUM_TEXTS), 2) if i // 4 == j // 4]
    first, second = np.array(draw.sample(pairs, num_pairs), np.int64).reshape(-1, 2).T
    numbers = np.array(draw.sample(range(1000), NUM_TEXTS))
    return Candidates.of_pairs(
        numbers, np.full(NUM_TEXTS, 0.7), np.full(NUM_TEXTS, 0.2), first, second
    )


@given(st.integers(0, 1000), st.integers(0, 60))
def test_clusters_share_no_document_and_keep_the_order(seed: int, num_pairs: int) -> None:
    candidates = candidates_of(seed, num_pairs)
    seen: set[int] = set()
    for begin, end in zip(candidates.borders[:-1], candidates.borders[1:], strict=True):
        first, second = candidates.first[begin:end], candidates.second[begin:end]
        members = {*first.tolist(), *second.tolist()}
        assert not members & seen
        seen |= members
        assert (np.lexsort((first, second)) == np.arange(end - begin)).all()
    assert candidates.borders[-1] == num_pairs


def pairs_of(words: np.ndarray) -> set[tuple[int, ...]]:
    if len(words) < 2:
        return {tuple(words.tolist())}
    return set(itertools.pairwise(words.tolist()))


def edits(one: list[Any], other: list[Any]) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        left, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            left, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, left + (a != b))
    return row[-1]


@given(st.lists(st.sampled_from("abcdef"), max_size=12), st.lists(st.sampled_from("abcdef")))
def test_the_share_of_edits_is_levenshteins(one: list[str], other: list[str]) -> None:
    expected = edits(one, other) / max(len(one), len(other), 1)
    a, b = Compared.of(" ".join(one)), Compared.of(" ".join(other))
    assert near.edited_share(a, b, 1.0) == pytest.approx(expected)
    assert near.edited_share(a, b, 0.2) == pytest.approx(expected if expected <= 0.2 else 1.0)


def found_plainly(candidates: Candidates, texts: list[np.ndarray]) -> set[tuple[int, int, float]]:
    """One text after another against those that stayed, as the definition says it."""
    pairs = set(zip(candidates.first.tolist(), candidates.second.tolist(), strict=True))
    gone: dict[int, tuple[int, int, float]] = {}
    for own in range(NUM_TEXTS):
        for other in range(own):
            if own in gone or other in gone or (other, own) not in pairs:
                continue
            a, b = pairs_of(texts[own]), pairs_of(texts[other])
            similarity = len(a & b) / len(a | b)
            longer = max(len(texts[own]), len(texts[other]))
            changed = edits(texts[own].tolist(), texts[other].tolist())
            floor = near.FLOOR_MARGIN * near.similarity_after(0.2)
            if similarity >= 0.7 or (similarity >= floor and changed <= 0.2 * longer):
                number, of = (int(candidates.documents[place]) for place in (own, other))
                gone[own] = number, of, similarity
    return set(gone.values())


@given(st.integers(0, 1000), st.integers(0, 60))
def test_what_is_found_is_what_the_definition_says(seed: int, num_pairs: int) -> None:
    candidates, texts = candidates_of(seed, num_pairs), some_texts(seed)
    found = near_duplicates(candidates, lambda place: Compared.of_words(texts[place]))
    assert set(found.tolist()) == found_plainly(candidates, texts)


def test_a_long_chain_is_one_cluster() -> None:
    count = 20_000
    order = np.random.default_rng(0).permutation(count)
    first, second = np.minimum(order[1:], order[:-1]), np.maximum(order[1:], order[:-1])
    chain = Candidates.of_pairs(np.arange(count), np.ones(count), np.zeros(count), first, second)
    assert chain.borders.tolist() == [0, count - 1]


@pytest.mark.parametrize("pairs_a_task", [1, 7, 10_000])
@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_a_task: int, workers: int
) -> None:
    monkeypatch.setattr(near, "PAIRS_A_TASK", pairs_a_task)
    monkeypatch.setattr(near, "PAIRS_ALONE", 0)
    texts, keys = some_texts(1), ["one", "two", "three"]
    part = np.sort(np.arange(NUM_TEXTS) % 3)
    count = np.array([len(words) for words in texts])
    start = np.concatenate([np.cumsum(count[part == p]) - count[part == p] for p in range(3)])
    for number, key in enumerate(keys):
        words = [texts[i] for i in np.flatnonzero(part == number)]
        np.save(tmp_path / f"{key}.words.npy", np.concatenate(words))
    candidates = candidates_of(1, 50)
    places = Places(part, start, count)
    scale = ScaleConfig(workers=workers)
    expected = near_duplicates(candidates, lambda i: Compared.of_words(texts[i]))
    assert 3 < len(expected) < 30
    for _ in range(2):
        found = compare_in_tasks(candidates, places, tmp_path, keys, scale)
        assert found.tolist() == expected.tolist()
