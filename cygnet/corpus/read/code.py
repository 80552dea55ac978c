"""Source code, notebooks and LaTeX as text that stays readable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from cygnet.corpus.read.decode import TextStream
from cygnet.corpus.read.html import tidy
from cygnet.corpus.read.piece import Piece
from cygnet.corpus.read.problems import Problems

MAX_FILE_CHARS = 1 << 24
"""More of a source file is not read: what is larger was written by a machine."""

LANGUAGES = {
    **dict.fromkeys((".py", ".pyi", ".pyx"), "python"),
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), "javascript"),
    **dict.fromkeys((".ts", ".tsx", ".mts"), "typescript"),
    **dict.fromkeys((".c", ".h"), "c"),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx", ".cu", ".cuh"), "c++"),
    **dict.fromkeys((".kt", ".kts"), "kotlin"),
    **dict.fromkeys((".ex", ".exs"), "elixir"),
    **dict.fromkeys((".hs", ".lhs"), "haskell"),
    **dict.fromkeys((".ml", ".mli"), "ocaml"),
    **dict.fromkeys((".pl", ".pm"), "perl"),
    **dict.fromkeys((".sh", ".bash", ".zsh"), "shell"),
    **dict.fromkeys((".clj", ".cljs"), "clojure"),
    **dict.fromkeys((".f", ".f90", ".f95", ".for"), "fortran"),
    **dict.fromkeys((".lisp", ".el", ".scm"), "lisp"),
    ".java": "java",
    ".go": "go",
    ".rs": "rust",
    ".rb": "ruby",
    ".php": "php",
    ".cs": "c#",
    ".swift": "swift",
    ".scala": "scala",
    ".lua": "lua",
    ".r": "r",
    ".jl": "julia",
    ".dart": "dart",
    ".zig": "zig",
    ".nim": "nim",
    ".erl": "erlang",
    ".sql": "sql",
    ".m": "objective-c",
    ".vb": "visual basic",
    ".ps1": "powershell",
    ".asm": "assembly",
    ".css": "css",
    ".scss": "scss",
    ".proto": "protobuf",
    ".cmake": "cmake",
    ".nix": "nix",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".vue": "vue",
    ".svelte": "svelte",
}
"""The programming language of a file by its suffix."""

_SPDX = re.compile(
    r"SPDX-License-Identifier:[ \t]*([\w.+() -]{2,100}?)[ \t]*(?:\*/|-->|\r?$)", re.M
)
_SPDX_CHARS = 8192

_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%[^\n]*")
_COMMENT_LINE = re.compile(r"^[ \t]*%[^\n]*\n?", re.MULTILINE)
_VERBATIM = re.compile(
    r"\\begin\{(verbatim|lstlisting|minted|Verbatim|alltt)\*?\}(?:\[[^\]\n]*\])?(?:\{\w+\})?\n?(.*?)"
    r"\\end\{\1\*?\}",
    re.DOTALL,
)
_TITLE = re.compile(r"\\title\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_BODY = re.compile(r"\\begin\{document\}(.*?)(?:\\end\{document\}|\Z)", re.DOTALL)
_HEADINGS = {"part": 1, "chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4}
_HEADING = re.compile(
    r"\\(part|chapter|(?:sub){0,2}section|(?:sub)?paragraph)\*?(?:\[[^\]]*\])?"
    r"\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}"
)
_LEFT_OUT = re.compile(
    r"\\(?:label|cite\w*|ref|eqref|pageref|index|vspace|hspace|includegraphics|bibliography\w*|"
    r"usepackage|input|include|pagestyle|thispagestyle|setcounter|setlength|newcommand|renewcommand)"
    r"\*?(?:\[[^\]]*\])*(?:\{[^{}]*\})+"
)
_SHOWN = re.compile(
    r"\\(?:emph|text\w\w|textnormal|underline|mbox|footnote|caption|url|title|author|date|enquote|"
    r"textcolor\{\w+\}|href\{[^{}]*\})\*?\{([^{}]*)\}"
)
_ITEM = re.compile(r"\\item(?:\[([^\]]*)\])?[ \t]*")
_ENVIRONMENT = re.compile(
    r"\\(?:begin|end)\{(?:document|itemize|enumerate|description|abstract|center|figure|table|quote|"
    r"quotation|flushleft|flushright|titlepage|thebibliography|small)\*?\}(?:\[[^\]]*\])?"
)
_LAYOUT = re.compile(
    r"\\(?:maketitle|tableofcontents|newpage|clearpage|noindent|centering|(?:small|med|big)skip|"
    r"par|appendix|hfill|vfill|protect|large|Large|LARGE|small|footnotesize|normalsize|bfseries|"
    r"itshape|sloppy|indent|linebreak|pagebreak)\b[ \t]*"
)
_MATH = re.compile(
    r"\$\$.*?\$\$|(?<!\\)\$[^$]*?\$|\\\[.*?\\\]|\\\(.*?\\\)|"
    r"\\begin\{(equation|align|gather|multline|eqnarray|math|displaymath)(\*?)\}.*?\\end\{\1\2\}",
    re.DOTALL,
)
_ESCAPED = re.compile(r"\\([%&#_{}$ ])")
_PLACE = re.compile("\ue000(\\d+)\ue001")


def code_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield a source file as it is, with its programming language and its SPDX licence.

    Args:
        stream: the file; `MAX_FILE_CHARS` of it are read.
        name: its name; the suffix says the language.
        problems: where what is no text and what is too long are counted.
    """
    text = _text_of(stream, name, problems)
    if text.strip():
        yield Piece("", text, _said(text, name))


def _text_of(stream: IO[bytes], name: str, problems: Problems) -> str:
    parts: list[str] = []
    length = 0
    for chunk in TextStream(stream, name, problems).chunks():
        parts.append(chunk[: MAX_FILE_CHARS - length])
        length += len(chunk)
        if length > MAX_FILE_CHARS:
            problems.add("damaged file", name, f"over {MAX_FILE_CHARS:,} characters in one file")
            break
    return "".join(parts)


def _said(text: str, name: str) -> dict[str, Any]:
    fields = {}
    if language := LANGUAGES.get(PurePosixPath(name).suffix.lower()):
        fields["programming_language"] = language
    if licence := _SPDX.search(text, 0, _SPDX_CHARS):
        fields["licence"] = licence[1].strip()
    return fields


def notebook_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield a Jupyter notebook (format 3 or 4) as Markdown: its text, its code in fences.

    Outputs are left out: they are data, pictures and traces of errors.

    Args:
        stream: the notebook; `MAX_FILE_CHARS` of it are read.
        name: its name in `problems`.
        problems: where what is no notebook is counted.
    """
    source = _text_of(stream, name, problems)
    if not source.strip():
        return
    try:
        notebook = json.loads(source)
    except (ValueError, RecursionError) as error:
        problems.add("damaged file", name, str(error)[:200])
        return
    sheets = notebook.get("worksheets") if isinstance(notebook, dict) else None
    holder = sheets[0] if isinstance(sheets, list) and sheets else notebook
    cells = holder.get("cells") if isinstance(holder, dict) else None
    if not isinstance(cells, list):
        problems.add("damaged file", name, "no notebook: it has no list of cells")
        return
    language = _notebook_language(notebook)
    text = tidy("\n\n".join(filter(None, (_cell(cell, language) for cell in cells))))
    if text:
        yield Piece("", text, {"programming_language": language} | _said(text, ""))
    else:
        problems.add("no text", name, "a notebook without text")


def _notebook_language(notebook: dict[str, Any]) -> str:
    found: Any = notebook.get("metadata")
    for path in (("language_info", "name"), ("kernelspec", "language")):
        value = found
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str) and re.fullmatch(r"[\w+#. -]{1,30}", value):
            return value.lower()
    return "python"


def _cell(cell: Any, language: str) -> str:
    if not isinstance(cell, dict):
        return ""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str) or not source.strip():
        return ""
    source = source.strip("\n")
    if cell.get("cell_type") == "code":
        longest = max(map(len, re.findall("`{3,}", source)), default=2)
        fence = "`" * (longest + 1)
        return f"{fence}{language}\n{source}\n{fence}"
    if cell.get("cell_type") == "heading":
        level = cell.get("level")
        return f"{'#' * (level if isinstance(level, int) and 0 < level < 7 else 1)} {source}"
    return source


def latex_pieces(stream: IO[bytes], name: str, problems: Problems) -> Iterator[Piece]:
    """Yield a LaTeX file as readable text: sections as headings, mathematics as it is written.

    Comments, the preamble, labels, citations and layout are left out.

    Args:
        stream: the file; `MAX_FILE_CHARS` of it are read.
        name: its name in `problems`.
        problems: where what is no text is counted.
    """
    source = _text_of(stream, name, problems)
    if not source.strip():
        return
    text = latex_to_text(source)
    if not text:
        problems.add("no text", name, "no text besides LaTeX's own commands")
        return
    fields = _said(source, "")
    if title := _TITLE.search(source[:100_000]):
        fields["title"] = " ".join(_plain(title[1]).split())
    yield Piece("", text, fields)


def latex_to_text(source: str) -> str:
    """Return LaTeX as readable text; what it does not know of stays as it is written."""
    kept: list[str] = []

    def keep(text: str) -> str:
        kept.append(text)
        return f"\ue000{len(kept) - 1}\ue001"

    source = source.replace("\ue000", "").replace("\ue001", "")
    source = _VERBATIM.sub(lambda found: keep(f"\n```\n{found[2].rstrip()}\n```\n"), source)
    source = _COMMENT.sub(r"\1", _COMMENT_LINE.sub("", source))
    if "\\begin{document}" in source and (body := _BODY.search(source)):
        title = _TITLE.search(source, 0, body.start())
        source = (f"# {title[1]}\n\n" if title else "") + body[1]
    source = _MATH.sub(lambda found: keep(found[0]), source)
    text = _plain(source)
    text = _PLACE.sub(lambda found: kept[int(found[1])], text)
    return tidy(_PLACE.sub(lambda found: kept[int(found[1])], text))


def _plain(source: str) -> str:
    text = _LEFT_OUT.sub("", source)
    for _ in range(3):  # `\textbf{\emph{...}}`: from the inside out
        text = _SHOWN.sub(r"\1", text)
    text = _HEADING.sub(
        lambda found: f"\n\n{'#' * _HEADINGS.get(found[1], 5)} {found[2]}\n\n", text
    )
    text = _ITEM.sub(lambda found: f"- {found[1]} " if found[1] else "- ", text)
    text = _LAYOUT.sub("", _ENVIRONMENT.sub("", text))
    text = text.replace("\\\\", "\n").replace("~", " ").replace("``", "“").replace("''", "”")
    return _ESCAPED.sub(r"\1", text.replace("---", "—").replace("--", "–"))
