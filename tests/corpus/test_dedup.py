import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.dedup import (
    Duplicate,
    Entry,
    comparable_words,
    exact_key,
    find_duplicates,
    jaccard,
    num_bands,
    shingles,
    signature,
)
from cygnet.corpus.document import Document, document_id
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
    documents: list[Document], heldout_below: float = 0.0, threshold: float = 0.8
) -> list[Duplicate | None]:
    tokens = [comparable_words(d) for d in documents]
    entries = [
        Entry(split_position(d), d.id, d.source, exact_key(t), signature(t))
        for d, t in zip(documents, tokens, strict=True)
    ]
    found = dict(find_duplicates(entries, heldout_below, threshold, tokens.__getitem__))
    return [found[i] for i in range(len(documents))]


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
        shingles(comparable_words(d))
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
        bands = num_bands(threshold)
        rows = 64 // bands
        assert bands == 64 or 1 - (1 - threshold**rows) ** bands >= 0.995
    assert num_bands(0.8) == 16 and num_bands(0.99) == 4
