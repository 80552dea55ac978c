"""Clean documents to conversations, by rules that a person can read (docs/instructions.md).

A recipe answers "How do I make X?", the first sentences of an article answer "What is X?", a poem
answers a request for its form. A document of a person's own, of which nothing more is known,
answers a request to continue its beginning. Conversations in the data pass through as they are.
Every choice is a hash of the document, so the same documents give the same conversations.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cygnet import __version__
from cygnet.corpus.pipeline import HELDOUT, TRAIN
from cygnet.corpus.small_talk import (
    CONVERSATIONS,
    GENERAL,
    WITH_BUILTIN_TEXT,
    WITH_OWN_TEXT,
    Talk,
)
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, folder_atomic, read_json, read_jsonl, sha256_file, write_json
from cygnet.progress import say

Row = dict[str, Any]

POEM_REQUESTS = (
    "写一首{form}，题为《{title}》。",
    "请以《{title}》为题，写一首{form}。",
    "作一首{form}，题目是《{title}》。",
    "帮我写一首题为《{title}》的{form}。",
    "Write a {form} titled 《{title}》.",
    "Please write a Chinese poem, a {form}, with the title 《{title}》.",
)
UNTITLED_POEM_REQUESTS = (
    "写一首{form}。",
    "请作一首{form}。",
    "来一首{form}吧。",
    "Write a {form}, please.",
)
RECIPE_REQUESTS = (
    "How do I make {title}?",
    "How do you make {title}?",
    "Give me a recipe for {title}.",
    "I want to cook {title}. What do I need, and what do I do?",
    "请给我一份 {title} 的食谱，用英文写。",
)
ARTICLE_REQUESTS = (
    "What is {title}?",
    "Tell me about {title}.",
    "Can you explain {title} in a sentence or two?",
    "{title} 是什么？请用英文回答。",
)
PERSON_REQUESTS = (
    "Who is or was {title}?",
    "Tell me about {title}.",
    "Who do people mean by {title}?",
    "{title} 是谁？请用英文回答。",
)
CONTINUATION_REQUESTS = ("Continue this text: {opening}", "How does this go on? {opening}")
HAN_CONTINUATION_REQUESTS = ("接着往下写：{opening}", "请续写这段文字：{opening}")

MAX_TITLE_CHARS = 60
MAX_RECIPE_CHARS = 1100
MAX_ARTICLE_CHARS = 360
UNTITLED_SHARE = 5
"""Of so many poems, one is asked for without a title."""
GREETED_SHARE = 12
"""Of so many requests, one follows a greeting, so that a second turn is nothing unusual."""
HELDOUT_WORDING_SHARE = 8
"""Of so many wordings of small talk, one is held out."""
OPENING_CHARS, CONTINUATION_CHARS = 120, 400

_SENTENCE_END = re.compile(r"(?<=[^A-Z\s.][.!?])\s+(?=[A-Z\"“(])")
_HAN = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True, kw_only=True)
class InstructionConfig:
    """How many conversations are made of what.

    Raises:
        UserError: a number is below zero.
    """

    max_poems: int = 3200
    """Poems to train on, the four forms alike."""
    max_recipes: int = 900
    """Recipes to train on."""
    max_articles: int = 1500
    """Articles to train on."""
    max_continuations: int = 3000
    """Openings of a person's own documents to train on."""
    small_talk_repeats: int = 2
    """Copies of all small talk in the training data."""
    max_heldout: int = 200
    """Held-out conversations of each kind."""
    seed: int = 0
    """Another seed takes other documents and wordings."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise UserError(f"instructions.{field.name}: must not be below zero")


def build_instructions(data: Path, out: Path, config: InstructionConfig) -> Path:
    """Write `train.jsonl.zst`, `heldout.jsonl.zst` and a manifest to the folder `out`.

    A row is {"messages", "kind", "subject"} and, for poems, "form". No subject (title) of the
    held-out documents occurs in the training rows, whatever its document.

    Does nothing but say so if `out` was made from the same data with the same settings.

    Args:
        data: a folder of `cygnet data`.
        out: replaced if it is there.
        config: how many of what.
    """
    inputs = {
        "data": sha256_file(data / "manifest.json"),
        "settings": asdict(config),
        "version": __version__,
    }
    if read_json(out / "manifest.json").get("inputs") == inputs:
        say(f"instructions: up to date, nothing to do ({out})")
        return out
    heldout = list(read_jsonl(data / HELDOUT))
    train = list(read_jsonl(data / TRAIN))
    reserved = {subject(document) for document in heldout}
    usable = [document for document in train if subject(document) not in reserved]
    own = not any(_kind(document) in ("poem", "recipe", "article") for document in train)
    rows = {
        TRAIN: [*_document_rows(usable, config, False), *_talk_rows(own, config, False)],
        HELDOUT: [*_document_rows(heldout, config, True), *_talk_rows(own, config, True)],
    }
    with folder_atomic(out) as folder:
        counts = {}
        for name, found in rows.items():
            found.sort(key=lambda row: _hash(config.seed, "order", row["messages"]))
            counts[name] = dict(sorted(Counter(row["kind"] for row in found).items()))
            with JsonlWriter(folder / name) as writer:
                for row in found:
                    writer.write(row)
        write_json(folder / "manifest.json", {"inputs": inputs, "counts": counts})
    told = ", ".join(f"{count} {kind}" for kind, count in counts[TRAIN].items())
    say(f"instructions: {len(rows[TRAIN])} conversations ({told}), {len(rows[HELDOUT])} held out")
    return out


def subject(document: Row) -> str:
    """Return what a document is about: its title, or else its text."""
    title = document.get("fields", {}).get("title")
    return str(title).strip().casefold() if title else document["text"]


def _kind(document: Row) -> str:
    """Return what a document can answer: chat, poem, recipe, article or continuation."""
    known = document.get("fields", {})
    if document.get("messages"):
        return "chat"
    if not known.get("title"):
        return "continuation"
    if known.get("form") and known.get("author"):
        return "poem"
    if known.get("ingredients") and known.get("steps"):
        return "recipe"
    return "article" if known.get("text") or known.get("description") else "continuation"


def _document_rows(documents: Iterable[Row], config: InstructionConfig, held: bool) -> list[Row]:
    made = {
        "poem": _poem,
        "recipe": _recipe,
        "article": _article,
        "continuation": _continuation,
    }
    rows: dict[str, list[Row]] = {}
    for document in documents:
        kind = _kind(document)
        if kind == "chat":
            row: Row | None = {
                "messages": document["messages"],
                "kind": "chat",
                "subject": document["id"],
            }
        else:
            row = made[kind](document, config.seed)
        if row is not None:
            rows.setdefault(f"{kind} {row.get('form', '')}", []).append(row)
    limits = {
        "poem": config.max_poems,
        "recipe": config.max_recipes,
        "article": config.max_articles,
        "continuation": config.max_continuations,
    }
    num_forms = max(sum(name.startswith("poem") for name in rows), 1)
    chosen = []
    for name, found in rows.items():
        kind = name.split()[0]
        limit = config.max_heldout if held else limits.get(kind, len(found))
        limit = limit // num_forms if kind == "poem" else limit
        found.sort(key=lambda row: _hash(config.seed, "take", row["messages"]))
        chosen += found[:limit]
    return chosen if held else [_greeted(row, config.seed) for row in chosen]


def _poem(document: Row, seed: int) -> Row | None:
    title, form = str(document["fields"]["title"]), str(document["fields"]["form"])
    verse = document["text"].partition("\n")[2]
    if not verse or len(title) > MAX_TITLE_CHARS:
        return None
    untitled = _hash(seed, "untitled", document["id"]) % UNTITLED_SHARE == 0
    wordings = UNTITLED_POEM_REQUESTS if untitled else POEM_REQUESTS
    request = _choose(wordings, seed, document["id"]).format(form=form, title=title)
    return {**_exchange(request, verse), "kind": "poem", "subject": title, "form": form}


def _recipe(document: Row, seed: int) -> Row | None:
    title, text = str(document["fields"]["title"]), document["text"]
    if len(title) > MAX_TITLE_CHARS or len(text) > MAX_RECIPE_CHARS:
        return None
    request = _choose(RECIPE_REQUESTS, seed, document["id"]).format(title=title)
    return {**_exchange(request, text), "kind": "recipe", "subject": title}


def _article(document: Row, seed: int) -> Row | None:
    known = document["fields"]
    title = str(known["title"])
    # The text follows the title and, where there is one, the short description.
    answer = _first_sentences(
        document["text"].split("\n\n")[2 if known.get("description") else 1 :]
    )
    if not answer or len(title) > MAX_TITLE_CHARS:
        return None
    wordings = PERSON_REQUESTS if known.get("topic") == "People" else ARTICLE_REQUESTS
    request = _choose(wordings, seed, document["id"]).format(title=title)
    return {**_exchange(request, answer), "kind": "article", "subject": title}


def _first_sentences(paragraphs: Sequence[str]) -> str:
    """Return as many whole sentences of the first paragraph as fit; none if the first does not."""
    taken = ""
    for sentence in _SENTENCE_END.split(paragraphs[0].strip()) if paragraphs else ():
        longer = f"{taken} {sentence}".strip()
        if len(longer) > MAX_ARTICLE_CHARS:
            break
        taken = longer
    return taken if taken.endswith((".", "!", "?", '"', "”", ")")) else ""


def _continuation(document: Row, seed: int) -> Row | None:
    """Part a text at a border of words (of characters, in Chinese) and ask for what follows."""
    text = document["text"]
    is_han = len(_HAN.findall(text)) * 3 > len(text)
    scale = 3 if is_han else 1
    at = _border(text, OPENING_CHARS // scale, is_han)
    until = _border(text, at + CONTINUATION_CHARS // scale, is_han)
    opening, following = text[:at].strip(), text[at:until].strip()
    if len(following) < 20 // scale:
        return None
    wordings = HAN_CONTINUATION_REQUESTS if is_han else CONTINUATION_REQUESTS
    request = _choose(wordings, seed, document["id"]).format(opening=opening)
    return {**_exchange(request, following), "kind": "continuation", "subject": subject(document)}


def _border(text: str, near: int, is_han: bool) -> int:
    if is_han or near >= len(text):
        return min(near, len(text))
    space = text.find(" ", near)
    return space if 0 <= space < near + 40 else near


def _talk_rows(own: bool, config: InstructionConfig, held: bool) -> Iterator[Row]:
    """Yield small talk: held out are some wordings of the questions, never whole questions."""
    for talk in (*GENERAL, *(WITH_OWN_TEXT if own else WITH_BUILTIN_TEXT)):
        for ask, answer in _held_or_not(talk, held):
            for _ in range(1 if held else config.small_talk_repeats):
                yield {**_exchange(ask, answer), "kind": "smalltalk", "subject": talk.asks[0]}
    if not held:
        for conversation in CONVERSATIONS:
            roles = ("user", "assistant")
            messages = [
                {"role": roles[i % 2], "content": turn} for i, turn in enumerate(conversation.turns)
            ]
            for _ in range(config.small_talk_repeats):
                yield {"messages": messages, "kind": "smalltalk", "subject": conversation.turns[0]}


def _held_or_not(talk: Talk, held: bool) -> Iterator[tuple[str, str]]:
    for number, ask in enumerate(talk.asks):
        # The first wording is always learnt, so that every question is.
        is_held = number > 0 and _hash(0, "talk", ask) % HELDOUT_WORDING_SHARE == 0
        if is_held == held:
            yield from ((ask, answer) for answer in (talk.answers[:1] if held else talk.answers))


def _greeted(row: Row, seed: int) -> Row:
    if row["kind"] == "chat" or _hash(seed, "greet", row["messages"]) % GREETED_SHARE:
        return row
    is_han = bool(_HAN.search(row["messages"][0]["content"][:6]))
    greetings = [talk for talk in GENERAL[:2] if talk.language == "en"]
    if is_han:
        greetings = [talk for talk in GENERAL if talk.language == "zh"][:2]
    talk = _choose(greetings, seed, row["subject"])
    ask, answer = _choose(talk.asks, seed, row["subject"]), talk.answers[0]
    return {**row, "messages": [*_exchange(ask, answer)["messages"], *row["messages"]]}


def _exchange(question: str, answer: str) -> Row:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def _choose(options: Sequence[Any], seed: int, key: str) -> Any:
    return options[_hash(seed, "choose", key) % len(options)]


def _hash(*key: Any) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big")
