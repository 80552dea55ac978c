"""The text that comes with Cygnet: recipes, an encyclopedia, Tang poems (see ATTRIBUTION.md)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cygnet.corpus.document import Document, document_id
from cygnet.files import read_jsonl

NUM_DOCUMENTS = 50_208
_BREAK = re.compile(r"\s*</?br ?/?>\s*")
_FOLDER = Path(__file__).parent


def about() -> str:
    """Return sources and licences of the built-in text, as Markdown."""
    return (_FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")


def builtin_files() -> list[Path]:
    """Return the data files, in the order in which they are read."""
    return [_FOLDER / f"{domain}.jsonl.gz" for domain in _RENDER]


def builtin_documents() -> Iterator[Document]:
    """Yield every built-in row as a document; `fields` holds the row itself."""
    for path in builtin_files():
        yield from documents_of(path)


def documents_of(path: Path) -> Iterator[Document]:
    """Yield the documents of one of `builtin_files`."""
    domain = path.name.removesuffix(".jsonl.gz")
    for number, row in enumerate(builtin_rows(domain), start=1):
        text = _RENDER[domain](row)
        yield Document(document_id(text), text, domain, f"builtin/{domain}:{number}", row)


def builtin_rows(domain: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one data file: `recipes_en`, `encyclopedia_en`, `tang_poems_zh`."""
    return read_jsonl(_FOLDER / f"{domain}.jsonl.gz")


def render_recipe(row: dict[str, Any]) -> str:
    """Return a recipe as Markdown: title, facts, `## Ingredients`, `## Steps`."""
    facts = [
        f"{name}: {_BREAK.sub('; ', row[field])}"
        for name, field in (("Category", "category"), ("Servings", "servings"), ("Time", "time"))
        if row.get(field)
    ]
    parts = [f"# {row['title']}"]
    if facts:
        parts.append(" · ".join(facts))
    ingredients = "\n".join(f"- {item}" for item in row["ingredients"])
    steps = "\n".join(f"{i}. {step}" for i, step in enumerate(row["steps"], start=1))
    return "\n\n".join([*parts, f"## Ingredients\n{ingredients}", f"## Steps\n{steps}"])


def render_article(row: dict[str, Any]) -> str:
    """Return an article: `# Title`, the short description if there is one, the text."""
    parts = [f"# {row['title']}", row.get("description") or "", row["text"]]
    return "\n\n".join(part for part in parts if part)


def render_poem(row: dict[str, Any]) -> str:
    """Return a poem: a line of title, author and form, then its lines."""
    return f"《{row['title']}》 {row['author']} {row['form']}\n{row['text']}"


_RENDER: dict[str, Callable[[dict[str, Any]], str]] = {
    "recipes_en": render_recipe,
    "encyclopedia_en": render_article,
    "tang_poems_zh": render_poem,
}
