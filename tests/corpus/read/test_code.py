import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.corpus.read import code
from cygnet.corpus.read.code import code_pieces, latex_pieces, latex_to_text, notebook_pieces
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems


def read(read_pieces: Any, data: str | bytes, name: str = "a") -> tuple[list[Piece], Problems]:
    problems = Problems()
    content = data.encode() if isinstance(data, str) else data
    return list(read_pieces(io.BytesIO(content), name, problems)), problems


SOURCE = "# SPDX-License-Identifier: Apache-2.0\n\n\ndef f(x):\n\treturn  x   \n\n\n\n"


def test_a_source_file_stays_as_it_is_with_language_and_licence() -> None:
    (piece,), _ = read(code_pieces, SOURCE, "src/a.py")
    assert piece == Piece("", SOURCE, {"programming_language": "python", "licence": "Apache-2.0"})


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("/* SPDX-License-Identifier: MIT */", "MIT"),
        ("// SPDX-License-Identifier: GPL-2.0-or-later WITH Classpath-exception-2.0",
         "GPL-2.0-or-later WITH Classpath-exception-2.0"),
        ("<!-- SPDX-License-Identifier: (MIT OR Apache-2.0) -->", "(MIT OR Apache-2.0)"),
        ("// SPDX-License-Identifier:", None),
        ("no licence", None),
    ],
)  # fmt: skip
def test_the_licence_is_what_the_header_says(header: str, licence: str | None) -> None:
    (piece,), _ = read(code_pieces, f"{header}\nint a;\n", "a.c")
    assert piece.fields.get("licence") == licence


def test_a_file_that_a_machine_wrote_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "MAX_FILE_CHARS", 1000)
    (piece,), problems = read(code_pieces, "int a;\n" * 1000, "a.c")
    assert len(piece.text) == 1000 and problems.count("damaged file") == 1


def test_a_binary_is_no_code() -> None:
    pieces, problems = read(code_pieces, b"\x7fELF\0\0\0\0" * 99, "a.c")
    assert pieces == [] and problems.count("not text") == 1


def notebook(*cells: dict[str, Any], **more: Any) -> str:
    return json.dumps({"cells": cells, "nbformat": 4, "metadata": {}} | more)


def test_a_notebook_becomes_markdown_without_outputs() -> None:
    source = notebook(
        {"cell_type": "markdown", "source": ["# Title\n", "Some *text*."]},
        {
            "cell_type": "code",
            "source": "a = 1\n\nprint(a)",
            "outputs": [{"text": "never shown"}],
        },
        {"cell_type": "code", "source": ""},
        {"cell_type": "code", "source": 'x = """\n```\n"""'},
        metadata={"language_info": {"name": "Julia"}},
    )
    (piece,), problems = read(notebook_pieces, source)
    assert piece.text == (
        "# Title\nSome *text*.\n\n```julia\na = 1\n\nprint(a)\n```\n\n"
        '````julia\nx = """\n```\n"""\n````\n'
    )
    assert piece.fields == {"programming_language": "julia"}
    assert not problems.kinds


def test_an_old_notebook_is_read_too() -> None:
    cells = [{"cell_type": "heading", "level": 2, "source": "Head"}]
    cells += [{"cell_type": "code", "input": ["a = 1"]}]  # type: ignore[list-item]
    (piece,), _ = read(notebook_pieces, json.dumps({"worksheets": [{"cells": cells}]}))
    assert piece.text == "## Head\n\n```python\na = 1\n```\n"


@pytest.mark.parametrize(
    "source", ["{", "[]", "3", "{}", '{"cells": 3}', "[" * 100_000, notebook()[:-9]]
)
def test_what_is_no_notebook_is_counted(source: str) -> None:
    pieces, problems = read(notebook_pieces, source)
    assert pieces == [] and problems.count("damaged file") == 1


def test_an_empty_notebook_has_no_text() -> None:
    assert read(notebook_pieces, notebook())[1].count("no text") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["cells", "worksheets", "source", "cell_type", "metadata", "input"]),
            inner,
        )
    ),
)


@given(JSON)
def test_no_json_raises_as_a_notebook(value: Any) -> None:
    read(notebook_pieces, json.dumps(value))
    read(notebook_pieces, json.dumps({"cells": [value], "metadata": value}))
    read(notebook_pieces, json.dumps({"cells": [{"source": value, "cell_type": value}]}))


PAPER = r"""\documentclass{article} % never shown
\usepackage{amsmath}
\title{On \emph{Seas}}
\begin{document}
\maketitle
% a comment of its own line
\section{Waves}\label{sec:waves}
A \textbf{wave of \emph{water}} is 50\% high~\cite{a,b}, % as said
see Section~\ref{x}: $a_1 = \frac{1}{2}$ and
\begin{equation}
  E = mc^2 \label{e}
\end{equation}
\begin{itemize}
  \item one
  \item[two] more
\end{itemize}
\subsection*{Code}
\begin{verbatim}
x = 5 % 3
\section{kept}
\end{verbatim}
``Quoted''---said \& done.
\end{document}
never shown
"""


def test_latex_becomes_readable_text() -> None:
    (piece,), problems = read(latex_pieces, PAPER)
    text = piece.text
    for shown in (
        "# On Seas\n", "## Waves\n", "### Code\n", "A wave of water is 50% high",
        "$a_1 = \\frac{1}{2}$", "E = mc^2", "- one\n", "- two more\n",
        "```\nx = 5 % 3\n\\section{kept}\n```\n", "“Quoted”—said & done.",
    ):  # fmt: skip
        assert shown in text
    for hidden in (
        "never shown",
        "comment",
        "as said",
        "usepackage",
        "cite",
        "itemize",
        "maketitle",
    ):
        assert hidden not in text
    assert piece.fields == {"title": "On Seas"} and not problems.kinds


def test_a_chapter_without_a_preamble_is_read_whole() -> None:
    assert latex_to_text("\\section{One}\nText.\n% no\n") == "## One\n\nText.\n"


def test_latex_cut_anywhere_gives_what_came_before() -> None:
    start = PAPER.index("see Section")
    for end in range(start, len(PAPER), 9):
        (piece,), _ = read(latex_pieces, PAPER[:end])
        assert "A wave of water is 50% high" in piece.text


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    for read_pieces in (code_pieces, notebook_pieces, latex_pieces):
        read(read_pieces, data, "a.py")


@given(
    st.lists(
        st.sampled_from(
            [
                "\\section{",
                "}",
                "{",
                "$",
                "\\begin{verbatim}",
                "\\end{verbatim}",
                "\\item[",
                "]",
                "%",
                "\\emph{",
                "\n",
                "a",
                "\\\\",
                "\\begin{equation}",
                "\\end{equation}",
                "\ue0000\ue001",
            ]
        )
    )
)
def test_no_latex_raises(parts: list[str]) -> None:
    latex_to_text("".join(parts))
