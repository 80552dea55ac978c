import re
from pathlib import Path

import pytest

from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.corpus.read.readers import read_file
from cygnet.corpus.read.sources import Source, read_sources
from cygnet.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "sources.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "books" / name).write_text(f"book {name}")
    (tmp_path / "rows.jsonl").write_text('{"body": "wrong", "poem": "a poem", "licence": "own"}\n')
    return tmp_path


def test_entries_say_what_holds_for_their_files(collection: Path) -> None:
    path = write(
        collection,
        "- path: books\n  licence: public domain\n  weight: 2\n  rules: web\n"
        "- {path: rows.jsonl, domain: poems, text_field: poem, epochs: 0.5, licence: CC0}\n",
    )
    problems = Problems()
    files = find_files([str(path)], problems)
    assert [(f.source, f.domain, f.licence, f.weight, f.epochs, f.rules) for f in files] == [
        ("books/a.txt", "books", "public domain", 2.0, 1.0, "web"),
        ("books/b.txt", "books", "public domain", 2.0, 1.0, "web"),
        ("rows.jsonl", "poems", "CC0", 1.0, 0.5, ""),
    ]
    documents = [d for file in files for d in read_file(file, problems, text_field="body")]
    assert [(d.text, d.fields["licence"]) for d in documents] == [
        ("book a.txt", "public domain"),
        ("book b.txt", "public domain"),
        ("a poem", "own"),
    ]
    assert not problems.kinds


def test_a_bare_path_is_an_entry_and_paths_start_at_the_file(collection: Path) -> None:
    assert read_sources(write(collection, "- rows.jsonl\n- https://a.org/b.txt\n- /c.txt\n")) == [
        Source(path=str(collection / "rows.jsonl"), number=1),
        Source(path="https://a.org/b.txt", number=2),
        Source(path="/c.txt", number=3),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a list of sources is wanted"),
        ("path: a.txt", "a list of sources is wanted"),
        ("- [", "no YAML"),
        ("- 3", "entry 1: 3 is no source"),
        ("- path: rows.jsonl\n- weight: 2", "entry 2: no path"),
        ("- path: rows.jsonl\n  wieght: 2", "entry 1: unknown field 'wieght'.*mean 'weight'"),
        ("- path: rows.jsonl\n  weight: 0", "entry 1, weight: 0 given"),
        ("- path: rows.jsonl\n  weight: .nan", "entry 1, weight: nan given"),
        ("- path: rows.jsonl\n  epochs: many", "entry 1, epochs: 'many' given"),
        ("- path: rows.jsonl\n  weight: yes", "entry 1, weight: True given"),
        ("- path: rows.jsonl\n  licence: 3", "entry 1, licence: 3 is no text"),
        ("- path: sources.yaml", "a sources file holds no other one"),
    ],
)
def test_a_wrong_entry_is_a_line_with_file_entry_and_field(
    collection: Path, text: str, message: str
) -> None:
    path = write(collection, text)
    with pytest.raises(UserError, match=rf"sources\.yaml: .*{message}") as caught:
        find_files([str(path)], Problems())
    assert "\n" not in str(caught.value)


def test_a_set_of_rules_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sources.yaml"
    path.write_text("- path: a.txt\n  rules: wet\n")
    with pytest.raises(UserError, match=r"entry 1, rules: no set 'wet'.*'web'"):
        read_sources(path)


@pytest.mark.parametrize(
    ("entry", "kind", "why"),
    [
        ("nowhere.txt", "no file", "no such file or folder"),
        ("nothing/*.txt", "no file", "no such file or folder"),
        ("picture.png", "not text", "cannot read a file of this kind"),
        ("nosuch://a/b.txt", "failed download", "Protocol not known: nosuch"),
        ("hf://datasets/", "failed download", "write hf://datasets/OWNER/NAME"),
    ],
)
def test_an_entry_that_gives_nothing_is_counted_and_the_rest_goes_on(
    collection: Path, entry: str, kind: str, why: str
) -> None:
    (collection / "picture.png").write_text("x")
    path = write(collection, f"- {entry}\n- rows.jsonl\n")
    problems = Problems()
    assert [file.path.name for file in find_files([str(path)], problems)] == ["rows.jsonl"]
    ((where, told),) = problems.kinds[kind].places
    assert len(problems.kinds) == 1 and where.endswith(entry)
    assert why in told and told.endswith(f"(entry 1 of {path})")
    with pytest.raises(UserError, match=rf"{re.escape(entry)}: {kind} .*--strict"):
        find_files([str(path)], Problems(strict=True))
