import random
import tracemalloc
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cygnet.corpus.clean.words import TextBatch
from cygnet.corpus.dedup import (
    MIN_RECALL,
    NUM_HASHES,
    Duplicate,
    Entries,
    bands,
    comparable,
    find_duplicates,
    fingerprints,
    share_found,
)
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.near import Candidates, Compared, jaccard, near_duplicates
from cygnet.corpus.split import split_position

LEXICON = [f"word{i}" for i in range(400)]


def document(text: str, title: str = "", source: str = "s") -> Document:
    return Document(document_id(text), text, "d", source, {"title": title} if title else {})


def test_conversations_that_only_call_or_think_otherwise_are_no_duplicates() -> None:
    def conversation(room: str, thought: str, call_id: str = "1") -> Document:
        call = {"id": call_id, "function": {"name": "light", "arguments": {"id": room}}}
        messages = [
            {"role": "user", "content": "Switch it on."},
            {"role": "assistant", "tool_calls": [call], "reasoning_content": thought},
        ]
        text = "User: Switch it on.\n\nAssistant:"
        return Document(document_id(text), text, "d", "s", {}, messages)

    one, other, thinking = (
        conversation(room, thought)
        for room, thought in (("hall", "now"), ("attic", "now"), ("hall", "why not"))
    )
    again = conversation("hall", "now", call_id="2")
    assert decide([one, other, thinking]) == [None, None, None]
    assert decide([one, again])[1] is not None


def decide(
    documents: list[Document],
    heldout_below: float = 0.0,
    threshold: float = 0.8,
    edits: float = 0.0,
) -> list[Duplicate | None]:
    texts = [comparable(d) for d in documents]
    prints = fingerprints(TextBatch(texts))
    entries = Entries(
        positions=np.array([split_position(d) for d in documents]),
        ids=np.array([d.id for d in documents]),
        sources=np.array([d.source for d in documents]),
        exact=prints.exact,
        minhash=lambda first, last: prints.minhash[first:last],
        thresholds=np.full(len(documents), threshold),
        edits=np.full(len(documents), edits),
    )

    def compare(candidates: Candidates) -> NDArray[Any]:
        return near_duplicates(candidates, lambda at: Compared.of(texts[candidates.documents[at]]))

    found = find_duplicates(entries, heldout_below, compare)
    return [found.get(i) for i in range(len(documents))]


def corpus_with_planted(seed: int, num_changed: int = 2) -> list[Document]:
    """Thirty texts of 60 words, and for each one a copy with `num_changed` words changed."""
    rng = random.Random(seed)
    texts = []
    for _ in range(30):
        words = rng.choices(LEXICON, k=60)
        changed = list(words)
        for at in rng.sample(range(60), num_changed):
            changed[at] = "other"
        texts += [" ".join(words), " ".join(changed)]
    return [document(text, source=f"s:{i}") for i, text in enumerate(texts)]


def test_one_of_each_planted_pair_goes_and_nothing_else() -> None:
    outcome = decide(corpus_with_planted(0))
    for first, second in zip(outcome[::2], outcome[1::2], strict=True):
        assert (first is None) != (second is None)
    reasons = {d.reason for d in outcome if d}
    assert reasons == {"near_duplicate"}


def test_candidates_under_the_threshold_are_kept() -> None:
    documents = corpus_with_planted(0, num_changed=9)
    assert decide(documents) == [None] * len(documents)
    assert sum(d is not None for d in decide(documents, threshold=0.4)) > 20


@settings(max_examples=20)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_outcome_does_not_depend_on_order(seed: int, rng: random.Random) -> None:
    documents = corpus_with_planted(seed)
    shuffled = list(documents)
    rng.shuffle(shuffled)

    def kept(docs: list[Document]) -> set[str]:
        return {d.id for d, dup in zip(docs, decide(docs, 0.3), strict=True) if dup is None}

    assert kept(documents) == kept(shuffled)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_no_kept_pair_reaches_the_threshold(seed: int) -> None:
    documents = corpus_with_planted(seed)
    kept = [
        Compared.of(comparable(d)).pairs
        for d, duplicate in zip(documents, decide(documents), strict=True)
        if duplicate is None
    ]
    for i, a in enumerate(kept):
        assert all(jaccard(a, b) < 0.8 for b in kept[:i])


def test_a_training_text_like_a_held_out_one_is_named_so_and_goes() -> None:
    documents = corpus_with_planted(1)
    positions = [split_position(d) for d in documents]
    outcome = decide(documents, heldout_below=0.3)
    leaks = 0
    for i in range(0, len(documents), 2):
        low, high = sorted((i, i + 1), key=positions.__getitem__)
        assert outcome[low] is None
        duplicate = outcome[high]
        assert duplicate is not None and duplicate.of == low
        leaking = positions[low] < 0.3 <= positions[high]
        assert duplicate.reason == ("heldout_duplicate" if leaking else "near_duplicate")
        leaks += leaking
    assert leaks > 3


def test_short_poems_that_differ_in_one_character_are_near_and_others_are_not() -> None:
    one = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
    variant = one.replace("穷", "望")
    other = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    outcome = decide([document(t, source=t) for t in (one, variant, other)])
    assert sorted(d is None for d in outcome) == [False, True, True]
    assert outcome[2] is None


def test_one_poem_under_two_titles_is_one_text() -> None:
    body = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
    documents = [document(f"《{t}》 {t}\n{body}", title=t) for t in ("登鹳雀楼", "登楼")]
    assert sorted(str(d and d.reason) for d in decide(documents)) == ["None", "exact_duplicate"]


def test_case_and_punctuation_do_not_count_but_symbols_do() -> None:
    same = decide([document("The Swan, here."), document("the swan here")])
    assert [d.reason for d in same if d] == ["exact_duplicate"]
    assert decide([document("2 + 2 makes"), document("2 - 2 makes")]) == [None, None]


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 0.99):
        rows, num_bands = bands(threshold)
        assert rows * num_bands <= NUM_HASHES
        assert share_found(threshold, rows, num_bands) >= MIN_RECALL
        assert rows == 16 or share_found(threshold, rows + 1, NUM_HASHES // (rows + 1)) < MIN_RECALL


def test_minhash_estimates_the_similarity_of_the_sets() -> None:
    """Over many pairs the share of equal values is the similarity, as unbiased as chance allows."""
    errors = []
    for seed in range(40):
        rng = random.Random(seed)
        words = rng.choices(LEXICON, k=120)
        changed = [w if rng.random() > 0.2 else rng.choice(LEXICON) for w in words]
        texts = [" ".join(words), " ".join(changed)]
        values = fingerprints(TextBatch(texts)).minhash
        similarity = jaccard(Compared.of(texts[0]).pairs, Compared.of(texts[1]).pairs)
        errors.append((values[:, 0] == values[:, 1]).mean() - similarity)
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06  # sqrt(0.5 * 0.5 / 128) is 0.044


@settings(max_examples=50)
@given(st.lists(st.text(alphabet="ab 天鹅.", max_size=12), min_size=1, max_size=6))
def test_fingerprints_do_not_depend_on_the_company(texts: list[str]) -> None:
    together = fingerprints(TextBatch(texts))
    for i, text in enumerate(texts):
        alone = fingerprints(TextBatch([text]))
        assert alone.exact[0] == together.exact[i]
        assert (alone.minhash[:, 0] == together.minhash[:, i]).all()


@settings(max_examples=100)
@given(st.text(alphabet="ab. 天", max_size=8), st.text(alphabet="ab. 天", max_size=8))
def test_exact_keys_are_equal_just_where_the_words_are(one: str, other: str) -> None:
    keys = fingerprints(TextBatch([one, other])).exact
    batch = TextBatch([one, other])
    if batch.words(0) or batch.words(1):
        assert (keys[0] == keys[1]) == (batch.words(0) == batch.words(1))
    else:
        assert (keys[0] == keys[1]) == (one.strip() == other.strip())


def test_few_edited_words_make_a_duplicate_where_pairs_alone_do_not() -> None:
    documents = corpus_with_planted(0, num_changed=11)  # of 60: 18 %, similarity about 0.5
    assert decide(documents) == [None] * len(documents)
    assert sum(d is not None for d in decide(documents, edits=0.2)) == 30
    assert sum(d is not None for d in decide(documents, edits=0.1)) == 0


def test_pages_of_one_template_are_no_duplicates_though_they_share_many_pairs() -> None:
    """Names that fill a fifth of the places and stand apart: alike in pairs, not in words."""
    template = "the page of {0} says that {0} is near {1} and has {2} and also {1} with {2} of {0}"
    rng = random.Random(0)
    texts = [template.format(*rng.sample(LEXICON, 3)) for _ in range(20)]
    assert decide([document(t, source=t) for t in texts], edits=0.2) == [None] * 20


def test_many_equal_documents_take_little_memory() -> None:
    documents = [document("an error page of six words", source=f"s:{i:05}") for i in range(20_000)]
    tracemalloc.start()
    outcome = decide(documents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(d is None for d in outcome) == 1
    assert peak < 150e6  # 512 bytes of MinHash each, not twenty kilobytes of pairs


def test_copies_of_what_repeats_another_go_with_it() -> None:
    one, near = corpus_with_planted(3)[:2]
    documents = [one, near, *(document(near.text, source=f"copy:{i}") for i in range(3))]
    outcome = decide(documents)
    kept = [i for i, duplicate in enumerate(outcome) if duplicate is None]
    assert len(kept) == 1
    assert {duplicate.of for duplicate in outcome if duplicate} == set(kept)
