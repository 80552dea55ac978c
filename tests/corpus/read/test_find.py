import os
import shutil
from pathlib import Path

import pytest

from cygnet.corpus.read.find import find_files
from cygnet.corpus.read.problems import Problems
from cygnet.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "notes/b.txt",
        "notes/a.md.gz",
        "notes/poems/x.jsonl",
        "notes/.hidden/y.txt",
        "notes/image.png",
        "v1.2.csv.zst",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_a_folder_gives_its_files_in_order_and_names_what_it_passes_over(tree: Path) -> None:
    problems = Problems()
    files = find_files([str(tree / "notes")], problems)
    assert [(f.source, f.domain, f.kind) for f in files] == [
        ("notes/a.md.gz", "notes", "text"),
        ("notes/b.txt", "notes", "text"),
        ("notes/poems/x.jsonl", "poems", "jsonl"),
    ]
    assert problems.count("not text") == 1
    assert "image.png" in problems.lines()[0]


def test_file_and_glob_and_each_file_once(tree: Path) -> None:
    file, pattern = str(tree / "v1.2.csv.zst"), str(tree / "**" / "*.txt")
    files = find_files([file, pattern, file], Problems())
    assert [(f.source, f.domain) for f in files] == [
        ("v1.2.csv.zst", "v1.2"),
        ("notes/b.txt", "notes"),
    ]


def test_many_single_files_share_a_domain(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    paths = [folder / f"{i}.txt" for i in range(20)]
    for path in paths:
        path.write_text("x")
    assert {f.domain for f in find_files([str(p) for p in paths], Problems())} == {"many"}


def test_excluded_folder_is_passed_over(tree: Path) -> None:
    files = find_files([str(tree / "notes")], Problems(), exclude=tree / "notes" / "poems")
    assert [f.path.name for f in files] == ["a.md.gz", "b.txt"]


@pytest.mark.parametrize(
    ("given_path", "message"),
    [
        ("note", "no such file or folder .did you mean 'notes'"),
        ("nothing/*.txt", "no such file or folder"),
        ("notes/image.png", "cannot read a file of this kind; give txt, md"),
    ],
)
def test_a_wrong_path_is_a_clear_line(tree: Path, given_path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_files([os.fspath(tree / given_path)], Problems())


@pytest.mark.parametrize("as_glob", [False, True])
def test_pipes_and_links_are_named_and_not_waited_for(tree: Path, as_glob: bool) -> None:
    os.mkfifo(tree / "notes/pipe.txt")
    (tree / "notes/lost.txt").symlink_to("nowhere.txt")
    (tree / "notes/linked.txt").symlink_to(tree / "notes/b.txt")
    (tree / "notes/folder").symlink_to(tree / "notes/poems")
    problems = Problems()
    files = find_files(
        [str(tree / "notes" / "*.txt") if as_glob else str(tree / "notes")], problems
    )
    assert "b.txt" in {f.path.name for f in files}
    assert not {"pipe.txt", "lost.txt"} & {f.path.name for f in files}
    named = dict(problems.kinds["no file"].places)
    names = ["pipe.txt", "lost.txt"] if as_glob else ["pipe.txt", "lost.txt", "folder"]
    assert {Path(where).name for where in named} == set(names)
    assert "not a regular file" in named[str(tree / "notes/pipe.txt")]
    assert "a link to nowhere.txt" in named[str(tree / "notes/lost.txt")]
    for name in ("pipe.txt", "lost.txt"):
        with pytest.raises(UserError, match=rf"{name}: (not a regular file|a link to)"):
            find_files([str(tree / "notes" / name)], Problems())


def test_loops_of_links_are_named_and_gone_through_once(tree: Path) -> None:
    (tree / "notes/loop.txt").symlink_to("loop.txt")
    (tree / "notes/again").symlink_to(tree / "notes")
    (tree / "notes/poems/up").symlink_to("..")
    problems = Problems()
    files = find_files([str(tree / "notes"), str(tree / "notes/**/*.txt")], problems)
    assert [f.source for f in files] == ["notes/a.md.gz", "notes/b.txt", "notes/poems/x.jsonl"]
    named = [Path(where).name for where, _ in problems.kinds["no file"].places]
    assert sorted(named) == ["again", "loop.txt", "loop.txt", "up"]


@pytest.mark.parametrize("pattern", ["notes/**/*.jsonl", "**/poems/*", "**/poems/**", "n*/p*/x*"])
def test_globs_find_what_lies_deep(
    tree: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [f.source for f in find_files([str(tree / pattern)], Problems())] == ["poems/x.jsonl"]
    monkeypatch.chdir(tree)
    assert [f.source for f in find_files([pattern], Problems())] == ["poems/x.jsonl"]


def test_a_folder_that_may_not_be_read_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "poems":  # root may read all, whatever the mode
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problems = Problems()
    files = find_files([str(tree / "notes")], problems)
    assert [f.source for f in files] == ["notes/a.md.gz", "notes/b.txt"]
    assert problems.kinds["unreadable"].places == [(str(tree / "notes/poems"), "Permission denied")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", "text"),
        ("a.rst.xz", "text"),
        ("a.tex", "latex"),
        ("a.htm", "html"),
        ("a.warc.gz", "warc"),
        ("a.tar.bz2", "tar"),
        ("a.tgz", "tar"),
        ("a.zip", "zip"),
        ("a.py", "code"),
        ("a.H", "code"),
        ("a.ipynb", "notebook"),
        ("dewiki-latest-pages-articles.xml.bz2", "xml"),
        ("dewiki-latest-pages-articles1.xml-p1p297012.bz2", "xml"),
        ("a.gz", None),
        ("Makefile", None),
        ("a.png", None),
    ],
)
def test_kinds_by_name(tmp_path: Path, name: str, kind: str | None) -> None:
    (tmp_path / name).write_text("x")
    files = find_files([str(tmp_path)], Problems())
    assert [f.kind for f in files] == ([kind] if kind else [])


def test_the_order_is_that_of_the_paths(tree: Path) -> None:
    shutil.copy(tree / "notes/b.txt", tree / "notes/poems.txt")
    (tree / "notes/poems-2").mkdir()
    shutil.copy(tree / "notes/b.txt", tree / "notes/poems-2/z.txt")
    files = [f.path for f in find_files([str(tree / "notes")], Problems())]
    assert files == sorted(files) and len(files) == 5
