import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygnet.corpus import instructions
from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.instructions import (
    HELDOUT,
    TRAIN,
    InstructionConfig,
    build_instructions,
    document_rows,
    subject_key,
)
from cygnet.corpus.sentences import first_sentences, passages, sentences
from cygnet.corpus.split import split_position
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, read_jsonl
from cygnet.han import POEM_FORMS
from cygnet.messages import validate

POEM = "白日依山尽，黄河入海流。\n欲穷千里目，更上一层楼。"
RECIPE = {"ingredients": ["1 cup flour", "2 eggs ()"], "steps": ["Mix flour and eggs.", "Bake."]}


def document(text: str, messages: Any = None, /, **fields: Any) -> Document:
    return Document(document_id(text), text, "own", "own.jsonl:1", fields, messages)


def write_data(folder: Path, train: list[Document], heldout: list[Document]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, documents in ((TRAIN, train), (HELDOUT, heldout)):
        with JsonlWriter(folder / name) as writer:
            for each in documents:
                writer.write(each.to_json())
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def load(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    train, heldout = (list(read_jsonl(folder / name)) for name in (TRAIN, HELDOUT))
    return train, heldout


@pytest.fixture(scope="module")
def builtin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of every fifth built-in document."""
    documents = [d for i, d in enumerate(builtin_documents()) if i % 5 == 0]
    train = [d for d in documents if split_position(d) >= 0.05]
    heldout = [d for d in documents if split_position(d) < 0.05]
    return write_data(tmp_path_factory.mktemp("instructions") / "data", train, heldout)


SMALL = InstructionConfig(max_poems=200, max_recipes=50, max_articles=80)


@pytest.fixture(scope="module")
def made(builtin: Path) -> Path:
    return build_instructions(builtin, builtin.parent / "instructions", SMALL)


def test_same_inputs_give_the_same_bytes_whatever_the_order_of_documents(
    builtin: Path, made: Path, tmp_path: Path
) -> None:
    assert digests(build_instructions(builtin, tmp_path / "again", SMALL)) == digests(made)
    train, heldout = (
        [Document.from_json(row) for row in read_jsonl(builtin / name)] for name in (TRAIN, HELDOUT)
    )
    random.Random(0).shuffle(train)
    shuffled = write_data(tmp_path / "data", train, heldout)
    other = build_instructions(shuffled, tmp_path / "shuffled", SMALL)
    assert digests(other)[TRAIN] == digests(made)[TRAIN]


def test_another_seed_takes_other_documents(builtin: Path, made: Path, tmp_path: Path) -> None:
    other = InstructionConfig(max_poems=200, max_recipes=50, max_articles=80, seed=1)
    rows, _ = load(build_instructions(builtin, tmp_path / "other", other))
    subjects = {row["subject"] for row in rows}
    assert len(subjects & {row["subject"] for row in load(made)[0]}) < len(subjects) / 2


def test_counts_are_those_asked_for_and_forms_are_balanced(made: Path) -> None:
    train, _ = load(made)
    kinds = Counter(row["kind"] for row in train)
    forms = Counter(row["form"] for row in train if "form" in row)
    # Joining hides some rows inside others.
    assert 0.8 * 200 < kinds["poem"] <= 200
    assert 0.8 * 50 < kinds["recipe"] <= 50
    assert 0.8 * 80 < kinds["article"] <= 80
    assert set(forms) == set(POEM_FORMS)
    assert min(forms.values()) > 0.75 * max(forms.values())
    manifest = json.loads((made / "manifest.json").read_text())
    assert manifest["counts"]["train"] == dict(sorted(kinds.items()))
    assert manifest["forms"]["train"] == dict(sorted(forms.items()))


def test_heldout_subjects_never_occur_in_training(builtin: Path, made: Path) -> None:
    train, heldout = load(made)
    kept_out = {subject_key(row["fields"]["title"]) for row in read_jsonl(builtin / HELDOUT)}
    real = [row for row in heldout if row["kind"] != "smalltalk"]
    assert len(real) > 50
    assert all(subject_key(row["subject"]) in kept_out for row in real)
    asked = "\n".join(m["content"] for row in train for m in row["messages"] if m["role"] == "user")
    named = {subject_key(title) for title in re.findall("《(.*?)》", asked)}
    assert len(named) > 100
    assert not named & kept_out
    assert not {subject_key(row["subject"]) for row in train} & kept_out


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_spelling_of_a_heldout_title_gets_into_training(data: Any, tmp_path: Path) -> None:
    titles = data.draw(st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=8))
    spelt = data.draw(st.sampled_from([str.upper, str.title, lambda t: f" {t}! "]))
    kinds = [{}, RECIPE]
    heldout = [document(f"{t} is a thing.", title=t, **random.choice(kinds)) for t in titles[:1]]
    train = [
        document(f"{t} is a thing, {i}.", title=t, **kinds[i % 2])
        for i, t in enumerate([*titles, *map(spelt, titles)])
    ]
    out = build_instructions(
        write_data(tmp_path / "data", train, heldout), tmp_path / "out", InstructionConfig()
    )
    kept_out = subject_key(titles[0])
    subjects = {subject_key(row["subject"]) for row in load(out)[0]}
    assert not kept_out or kept_out not in subjects


def test_every_row_is_a_valid_conversation_that_ends_with_an_answer(made: Path) -> None:
    for row in [rows for split in load(made) for rows in split]:
        validate(row["messages"])
        assert row["messages"][-1]["role"] == "assistant"
        assert all(m["content"] == m["content"].strip() for m in row["messages"])


def test_heldout_rows_have_one_exchange(made: Path) -> None:
    _, heldout = load(made)
    assert {len(row["messages"]) for row in heldout} == {2}
    assert {row["kind"] for row in heldout} == {"poem", "recipe", "article", "smalltalk"}


def test_heldout_ways_of_asking_are_never_learnt_but_their_answers_are(made: Path) -> None:
    train, heldout = load(made)
    said = {m["content"].lower().rstrip(".!?。！？") for row in train for m in row["messages"]}
    talk = [row["messages"] for row in heldout if row["kind"] == "smalltalk"]
    assert len(talk) >= 10
    for ask, answer in talk:
        assert ask["content"].lower().rstrip(".!?。！？") not in said
        assert answer["content"].lower().rstrip(".!?。！？") in said


def test_a_poem_is_answered_with_exactly_its_lines() -> None:
    poem = document("《登鹳雀楼》 王之涣\n" + POEM, title="登鹳雀楼", form="五言绝句", text=POEM)
    for seed in range(40):
        (row,) = document_rows(poem, seed)
        request = row["messages"][0]["content"]
        assert row["messages"][1]["content"] == POEM
        assert ("五言绝句" in request) == (row.get("form") == "五言绝句")


@pytest.mark.parametrize(
    "fields",
    [
        {"title": "登鹳雀楼", "form": "七言绝句", "text": POEM},
        {"title": "登鹳雀楼", "form": "五言绝句", "text": POEM.replace("目", "○")},
        {"title": "登鹳雀楼 一", "form": "五言绝句", "text": POEM},
    ],
)
def test_a_poem_with_a_gap_or_of_another_form_is_left_out(fields: dict[str, str]) -> None:
    assert document_rows(document(POEM, **fields)) == []


def test_a_recipe_is_answered_with_tidy_markdown() -> None:
    (row,) = document_rows(document("Cake", title="Cake", servings="4", time=None, **RECIPE))
    assert row["messages"][1]["content"] == (
        "# Cake\n\nServings: 4\n\n## Ingredients\n- 1 cup flour\n- 2 eggs\n\n"
        "## Steps\n1. Mix flour and eggs.\n2. Bake."
    )
    assert "cake" in row["messages"][0]["content"].lower()


@pytest.mark.parametrize(
    "changes",
    [{"steps": ["Stir. " * 300]}, {"steps": []}, {"ingredients": ['{| class="x"']}, {"title": ""}],
)
def test_a_recipe_that_is_long_or_broken_is_left_out(changes: dict[str, Any]) -> None:
    assert document_rows(document("Cake", **({"title": "Cake"} | RECIPE | changes))) == []


@pytest.mark.parametrize(
    ("title", "topic", "text", "asked"),
    [
        ("Car", "Technology", "A car is a vehicle. It rolls.", "What is a car?"),
        ("Moon", "Physics", "The Moon is a body. It shines.", "What is the Moon?"),
        ("Cats", "Biology", "Cats are animals. All cats purr.", "What are cats?"),
        ("Ada Lovelace", "People", "Ada Lovelace was a poet. She died.", "Who was Ada Lovelace?"),
    ],
)
def test_a_question_fits_its_subject(title: str, topic: str, text: str, asked: str) -> None:
    each = document(text, title=title, topic=topic)
    rows = [row for seed in range(60) for row in document_rows(each, seed)]
    assert asked in {row["messages"][0]["content"] for row in rows}
    assert {row["messages"][1]["content"] for row in rows} == {text, text.split(". ")[0] + "."}


def test_an_own_conversation_passes_through_as_it_is(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <|im_end|>"},
        {"role": "assistant", "content": "Yes."},
    ]
    chat = document("User: Hi", messages)
    out = build_instructions(
        write_data(tmp_path / "data", [chat], [chat]), tmp_path / "out", InstructionConfig()
    )
    expected = {
        "messages": messages, "kind": "chat", "group": "own", "subject": "", "source": chat.source,
    }  # fmt: skip
    train, heldout = load(out)
    assert expected in train
    assert heldout[0] == expected
    assert {row["kind"] for row in heldout[1:]} == {"smalltalk"}


def test_plain_text_of_a_user_is_continued_and_never_called_builtin(tmp_path: Path) -> None:
    text = " ".join(f"The river number {i} runs to the sea." for i in range(60))
    out = build_instructions(
        write_data(tmp_path / "data", [document(text)], [document(text[:900])]),
        tmp_path / "out",
        InstructionConfig(),
    )
    train, heldout = load(out)
    # Joining may put it behind or before small talk.
    said = [m["content"] for row in train for m in row["messages"]]
    assert any("runs to the sea" in content for content in said)
    assert {row["kind"] for row in heldout} == {"continuation", "smalltalk"}
    assert not any("Tang dynasty" in content or "唐诗" in content for content in said)


@given(st.text(alphabet="ab, .!?\n\"'。，山水", max_size=400))
def test_a_passage_is_the_text_itself(text: str) -> None:
    for opening, following in passages(text):
        begin = text.index(opening)
        assert text[begin + len(opening) :].lstrip().startswith(following)
        assert opening
        assert following


@given(st.text(alphabet="ab A.!?\n\"'。，山", max_size=200), st.integers(1, 4), st.integers(0, 200))
def test_first_sentences_are_the_beginning_of_the_text(text: str, count: int, limit: int) -> None:
    first = first_sentences(text, count, limit)
    assert text.strip().startswith(first)
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_abbreviations_and_initials_end_no_sentence() -> None:
    text = "Dr. J. R. Smith met St. Paul in the U.S. Army. He left. 他走了。她留下了！"
    assert sentences(text) == [
        "Dr. J. R. Smith met St. Paul in the U.S. Army.",
        "He left. 他走了。",
        "她留下了！",
    ]


def test_the_documentation_lists_every_wording() -> None:
    page = (Path(__file__).parents[2] / "docs" / "instructions.md").read_text()
    tables = [instructions.POEM_TITLED, instructions.POEM_UNTITLED, instructions.POEM_FORMLESS]
    tables += [instructions.RECIPE, instructions.TITLED_TEXT, instructions.TITLED_TEXT_ZH]
    wordings = [wording for table in tables for wording in table]
    wordings += [w for w, _ in (*instructions.ARTICLE_ABOUT, *instructions.ARTICLE_QUESTION)]
    wordings += [instructions.PERSON_QUESTION_ZH[0], instructions.THING_QUESTION_ZH[0]]
    continued = [*instructions.CONTINUATION, *instructions.CONTINUATION_ZH]
    wordings += [wording.split("{")[0].strip() for wording in continued]
    assert [wording for wording in wordings if wording not in page] == []


def test_a_folder_without_data_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no train\.jsonl\.zst there"):
        build_instructions(tmp_path, tmp_path / "out", InstructionConfig())


def test_counts_below_zero_are_refused() -> None:
    with pytest.raises(UserError, match="max_poems is -1"):
        InstructionConfig(max_poems=-1)
