"""Clean documents to conversations, by rules that `docs/instructions.md` lists in full.

Every row is one conversation: {"messages", "kind", "subject"}, where it was read ("source", see
`Document.source`) unless it is small talk and, for a poem whose form is named in the request,
"form". A user's own conversation is of the kind "chat", with "group", its row's own `kind` or else
the file's name, and in training with "weight" where its file has one. What is made of a document
depends on the document and the seed alone, and which documents are taken on a hash of their id, so
that nothing hangs on their order.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cygnet
from cygnet.corpus.builtin import render_recipe
from cygnet.corpus.document import HELDOUT, TRAIN, Document
from cygnet.corpus.sentences import first_sentences, passages, sentences
from cygnet.corpus.small_talk import (
    CONVERSATIONS,
    GENERAL,
    KIND,
    WITH_BUILTIN_TEXT,
    WITH_OWN_TEXT,
    Talk,
)
from cygnet.errors import UserError
from cygnet.files import JsonlWriter, folder_atomic, read_jsonl, sha256_file, write_json
from cygnet.han import HAN, POEM_FORMS
from cygnet.progress import track

Row = dict[str, Any]
FORMAT_VERSION = 1

MAX_RECIPE_CHARS = 1100
MAX_TITLE_CHARS = 80
MAX_POEM_TITLE_CHARS = 10
MAX_ARTICLE_CHARS = 420
MAX_JOINED_CHARS = 900
SHARE_WITHOUT_TITLE = 0.2
SHARE_WITHOUT_FORM = 0.04
SHARE_CASUAL = 0.15
HELDOUT_ASK_SHARE = 8
"""Of so many ways of asking in small talk, one is held out."""

POEM_TITLED = (
    "写一首{form}，题为《{title}》。",
    "请以《{title}》为题，写一首{form}。",
    "作一首题为《{title}》的{form}。",
    "来一首{form}，题目是《{title}》。",
    "请写一首题为《{title}》的{form}（{lines_zh}句，每句{characters_zh}个字）。",
    "以《{title}》为题作{form}一首。",
    "Write a {form} ({lines_en} lines of {characters_en} characters) titled 《{title}》.",
    "Please write a Chinese poem in the form {form}, titled 《{title}》.",
)
POEM_UNTITLED = (
    "写一首{form}。",
    "请作一首{form}。",
    "来一首{form}吧。",
    "请写一首{form}，{lines_zh}句，每句{characters_zh}个字。",
    "Write a {form}.",
    "Write a Chinese poem of {lines_en} lines with {characters_en} characters each: a {form}.",
)
POEM_FORMLESS = (
    "写一首诗，题为《{title}》。",
    "写一首诗。",
    "请以《{title}》为题写诗。",
    "Write a Chinese poem titled 《{title}》.",
    "Write me a Chinese poem.",
)
RECIPE = (
    "How do I make {title}?",
    "How do you make {title}?",
    "How do I cook {title}?",
    "Give me a recipe for {title}.",
    "Please write down the recipe for {title}.",
    "What is the recipe for {title}?",
    "I would like to make {title}. What do I need, and what are the steps?",
    "{title}: ingredients and steps, please.",
    "{title} 怎么做？请用英文回答。",
    "请用英文给我一份 {title} 的食谱。",
)
ARTICLE_ABOUT: tuple[tuple[str, int], ...] = (
    ("Tell me about {title}.", 3),
    ("What do you know about {title}?", 3),
    ("Explain {title} in one sentence.", 1),
    ("Please describe {title} briefly.", 2),
    ("请用英文介绍一下 {title}。", 2),
)
"""Wordings for any subject, and how many sentences answer them."""
ARTICLE_QUESTION: tuple[tuple[str, int], ...] = (
    ("{question} {verb} {phrase}?", 2),
    ("{question} {verb} {phrase}?", 1),
    ("{question} {verb} {phrase}?", 3),
    ("Can you tell me {question_lower} {phrase} {verb}?", 2),
)
"""Wordings for a subject whose first sentence shows its verb: `What is`, `Who was`, ..."""
PERSON_QUESTION_ZH = ("{title} 是谁？请用英文回答。", 2)
THING_QUESTION_ZH = ("{title} 是什么？请用英文回答。", 2)
TITLED_TEXT = ("Write a short text titled “{title}”.", "Write the beginning of “{title}”.")
TITLED_TEXT_ZH = ("请写一段题为《{title}》的文字。", "写出《{title}》的开头。")
CONTINUATION = (
    "Continue this text: {opening}",
    "Please continue:\n\n{opening}",
    "How does this go on?\n\n{opening}",
)
CONTINUATION_ZH = (
    "请续写：{opening}",
    "接着往下写：\n\n{opening}",
    "下面这段话接下来怎么写？\n\n{opening}",
)

_NUMBERS_EN = {4: "four", 5: "five", 7: "seven", 8: "eight"}
_NUMBERS_ZH = {4: "四", 5: "五", 7: "七", 8: "八"}
_HAN = re.compile(f"[{HAN}]")
_HAN_TITLE = re.compile(f"[{HAN}]{{1,{MAX_POEM_TITLE_CHARS}}}")
_CLAUSE_END = re.compile(r"[，。！？；：、\n]+")
_MARKUP = re.compile(r"[{}<>|]|\[\[|==|&\w+;|https?:|\bCategory:")
_GAP = re.compile(r"\( ?\)|\(\s*[,;]| ,|\s{2,}")
_EMPTY_BRACKETS = re.compile(r"\s*\(\s*/?\s*\)")
_VERB = re.compile(r"\b(is|are|was|were)\b")
_ASIDE = re.compile(r"\s*\([^)]*\)$")


@dataclass(frozen=True, kw_only=True)
class InstructionConfig:
    """How many conversations are made of what.

    Raises:
        UserError: a number is below zero.
    """

    max_poems: int = 2600
    """Poems asked for in training, the same number of each form where there are enough."""
    max_recipes: int = 900
    """Recipes asked for in training."""
    max_articles: int = 1500
    """Questions about the subjects of articles in training."""
    max_continuations: int = 2000
    """Texts to continue in training, from documents that no other rule is for."""
    small_talk_repeats: int = 2
    """How often each way of saying something in Cygnet's own small talk (greetings, who it is)
    occurs in training; 0 leaves small talk out."""
    joined_share: float = 0.08
    """Share of the training conversations that are joined with the next into one of more turns."""
    heldout_poems: int = 200
    """Held-out poems asked for in evaluation."""
    heldout_recipes: int = 60
    """Held-out recipes asked for in evaluation."""
    heldout_articles: int = 120
    """Held-out subjects asked about in evaluation."""
    heldout_continuations: int = 120
    """Held-out texts to continue in evaluation."""
    seed: int = 0
    """Another seed takes other documents and wordings."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise UserError(f"instructions: {name} is {value}: it must be zero or more")
        if self.joined_share > 1:
            raise UserError(f"instructions: joined_share is {self.joined_share}: at most 1")


def build_instructions(
    data: Path, out: Path, config: InstructionConfig, weights: Mapping[str, float] | None = None
) -> Path:
    """Make the folder `out` of train and held-out conversations from a data folder.

    The subject (title) of a held-out document is the subject of no training row.

    Args:
        data: as `prepare` makes it.
        out: replaced if it is there.
        config: how many of what.
        weights: of files, by their name in `Document.source`: how often a training row that was
            read there is seen in an epoch.

    Returns:
        `out`, with train.jsonl.zst, heldout.jsonl.zst and manifest.json.

    Raises:
        UserError: `data` is no data folder.
    """
    inputs = {name: data / name for name in (TRAIN, HELDOUT)}
    for path in inputs.values():
        if not path.is_file():
            raise UserError(f"{data}: no {path.name} there; make it with cygnet data")
    heldout = list(_documents(inputs[HELDOUT]))
    kept_out = {subject_key(document.title) for document in heldout} - {""}
    train_limits = _Limits(
        config.max_poems, config.max_recipes, config.max_articles, config.max_continuations
    )
    heldout_limits = _Limits(
        config.heldout_poems,
        config.heldout_recipes,
        config.heldout_articles,
        config.heldout_continuations,
    )
    with folder_atomic(out) as folder:
        learnt = (
            document
            for document in track(_documents(inputs[TRAIN]), "instructions")
            if subject_key(document.title) not in kept_out
        )
        with JsonlWriter(folder / TRAIN) as writer:
            made = _made(learnt, train_limits, config.seed, writer, weights or {})
            made = made.joined_with(_small_talk(made.kinds, config), config)
            for row in made.rows:
                writer.write(row)
        with JsonlWriter(folder / HELDOUT) as writer:
            of_heldout = _made(heldout, heldout_limits, config.seed, writer, {})
            of_heldout.rows.extend(_heldout_talk(made.kinds, config))
            for row in of_heldout.rows:
                writer.write(row)
        manifest = {
            "made_by": "cygnet instructions",
            "format_version": FORMAT_VERSION,
            "cygnet_version": cygnet.__version__,
            "settings": asdict(config) | ({"weights": dict(weights)} if weights else {}),
            "inputs": {name: sha256_file(path) for name, path in inputs.items()},
            "counts": {"train": made.counts("kind"), "heldout": of_heldout.counts("kind")},
            "forms": {"train": made.counts("form"), "heldout": of_heldout.counts("form")},
            "outputs": {name: sha256_file(folder / name) for name in (TRAIN, HELDOUT)},
        }
        write_json(folder / "manifest.json", manifest)
    return out


def subject_key(title: str) -> str:
    """Return what two spellings of one subject have in common: its letters and digits."""
    folded = unicodedata.normalize("NFKC", title).casefold()
    return "".join(character for character in folded if character.isalnum())


def document_rows(document: Document, seed: int = 0) -> list[Row]:
    """Return the conversations that can be made of a document, each with its `source`.

    The document's fields decide by which rule they are made.

    A conversation passes through; ingredients and steps make a recipe; a form of `POEM_FORMS` a
    poem; a title an article or, where the text does not speak of it, a titled text; anything else
    is a text to continue.
    """
    return [row | {"source": document.source} for row in _document_rows(document, seed)]


def _document_rows(document: Document, seed: int) -> list[Row]:
    rng = random.Random(f"{seed}:{document.id}")
    fields = document.fields
    if document.messages is not None:
        kind = fields.get("kind")
        group = kind if isinstance(kind, str) and kind else document.domain
        row: Row = {
            "messages": document.messages, "kind": "chat", "group": group,
            "subject": document.title,
        }  # fmt: skip
        return [row | {"tools": fields["tools"]} if fields.get("tools") else row]
    if isinstance(fields.get("ingredients"), list) and isinstance(fields.get("steps"), list):
        return _recipe(document, rng)
    if fields.get("form") in POEM_FORMS:
        return _poem(document, rng)
    if document.title and len(document.title) <= MAX_TITLE_CHARS:
        return _article(document, rng)
    return _continuations(document, rng)


def _poem(document: Document, rng: random.Random) -> list[Row]:
    title, form = document.title, document.fields["form"]
    text = document.fields.get("text") or document.text
    num_lines, num_characters = POEM_FORMS[form]
    clauses = [clause for clause in _CLAUSE_END.split(text) if clause]
    sound = len(clauses) == num_lines and all(
        len(clause) == num_characters and len(_HAN.findall(clause)) == num_characters
        for clause in clauses
    )
    if not sound or not _HAN_TITLE.fullmatch(title):
        return []
    draw = rng.random()
    wordings: tuple[str, ...] = POEM_TITLED
    if draw < SHARE_WITHOUT_FORM:
        wordings = POEM_FORMLESS
    elif draw < SHARE_WITHOUT_FORM + SHARE_WITHOUT_TITLE:
        wordings = POEM_UNTITLED
    request = rng.choice(wordings).format(
        form=form,
        title=title,
        lines_zh=_NUMBERS_ZH[num_lines],
        characters_zh=_NUMBERS_ZH[num_characters],
        lines_en=_NUMBERS_EN[num_lines],
        characters_en=_NUMBERS_EN[num_characters],
    )
    row = _row(request, text, "poem", title)
    return [row if draw < SHARE_WITHOUT_FORM else row | {"form": form}]


def _recipe(document: Document, rng: random.Random) -> list[Row]:
    fields, title = document.fields, document.title
    facts = {name: fields.get(name) for name in ("servings", "time")}
    facts = {name: fact for name, fact in facts.items() if not _MARKUP.search(str(fact))}
    ingredients = [_EMPTY_BRACKETS.sub("", str(item)).strip() for item in fields["ingredients"]]
    steps = [_EMPTY_BRACKETS.sub("", str(item)).strip() for item in fields["steps"]]
    tidy = [item for item in [*ingredients, *steps] if item]
    if not title or not ingredients or not steps or len(tidy) < len(ingredients) + len(steps):
        return []
    answer = render_recipe({"title": title, **facts, "ingredients": ingredients, "steps": steps})
    if len(answer) > MAX_RECIPE_CHARS or _MARKUP.search("\n".join([title, *tidy])):
        return []
    return [_row(_casual(rng.choice(RECIPE).format(title=title), rng), answer, "recipe", title)]


def _article(document: Document, rng: random.Random) -> list[Row]:
    title = document.title
    text = document.fields.get("text")
    text = text if isinstance(text, str) and text else document.text
    found = sentences(text)
    if not found:
        return []
    base = _ASIDE.sub("", title)
    if base.split()[-1:] and base.split()[-1].casefold() in found[0].casefold():
        wording, count = rng.choice(_article_wordings(document, base, found[0]))
        answer = first_sentences(text, count, MAX_ARTICLE_CHARS)
        request = _casual(wording, rng)
    else:
        han = _mostly_han(text)
        request = rng.choice(TITLED_TEXT_ZH if han else TITLED_TEXT).format(title=title)
        answer = first_sentences(text, 5, MAX_ARTICLE_CHARS)
    if not answer or _GAP.search(answer.replace("\n", " ")) or _MARKUP.search(answer):
        return []
    return [_row(request, answer, "article", title)]


def _article_wordings(document: Document, base: str, first: str) -> list[tuple[str, int]]:
    """Return requests about an article's subject, with the number of sentences to answer in."""
    title, topic = document.title, document.fields.get("topic")
    if _mostly_han(document.text):
        return [(f"{title}是什么？", 2), (f"请介绍一下{title}。", 3), (f"用一句话解释{title}。", 1)]
    phrase = _phrase(document, base, first)
    about = [(wording.format(title=phrase), count) for wording, count in ARTICLE_ABOUT]
    verb = _VERB.search(first)
    if verb is None or topic == "Uncategorized":
        return about
    is_person = topic == "People"
    words = {
        "question": "Who" if is_person else "What",
        "question_lower": "who" if is_person else "what",
        "verb": verb[1],
        "phrase": phrase,
    }
    asked = [(wording.format(**words), count) for wording, count in ARTICLE_QUESTION]
    zh, count = PERSON_QUESTION_ZH if is_person else THING_QUESTION_ZH
    return [*asked, *about, (zh.format(title=title), count)]


def _phrase(document: Document, base: str, first: str) -> str:
    """Return the subject as it is spelt inside a sentence: `a car`, `the Moon`, `chemistry`."""
    title = document.title
    if base != title or document.fields.get("topic") == "People":
        return title
    named = re.match(rf"(An?|The) ({re.escape(base)})\b", first, re.IGNORECASE)
    if named:
        return f"{named[1].lower()} {named[2]}"
    lower = base[:1].lower() + base[1:]
    inside = re.search(rf"(?<![.!?] ) {re.escape(lower)}\b", document.text)
    return lower if inside else title


def _continuations(document: Document, rng: random.Random) -> list[Row]:
    rows = []
    for opening, following in passages(document.text):
        wordings = CONTINUATION_ZH if _mostly_han(opening) else CONTINUATION
        request = rng.choice(wordings).format(opening=opening)
        rows.append(_row(request, following, "continuation", document.title))
    return rows


def _casual(request: str, rng: random.Random) -> str:
    """Return some requests as people type them in haste: no capital, no final mark."""
    if rng.random() >= SHARE_CASUAL:
        return request
    return request[:1].lower() + request[1:].rstrip(".?!。？！")


def _mostly_han(text: str) -> bool:
    return len(_HAN.findall(text)) > 0.3 * len(text)


def _row(request: str, answer: str, kind: str, subject: str) -> Row:
    return {"messages": _turns([request, answer]), "kind": kind, "subject": subject}


def _turns(texts: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]


def _documents(path: Path) -> Iterator[Document]:
    return (Document.from_json(value) for value in read_jsonl(path))


@dataclass(frozen=True, slots=True)
class _Limits:
    poems: int
    recipes: int
    articles: int
    continuations: int

    def buckets(self) -> dict[str, int]:
        """Return how many rows each bucket may hold; each form of poem has one of its own."""
        share, rest = divmod(self.poems, len(POEM_FORMS))
        forms = {f"poem {form}": share + (i < rest) for i, form in enumerate(POEM_FORMS)}
        return forms | {
            "recipe": self.recipes,
            "article": self.articles,
            "continuation": self.continuations,
        }


@dataclass(frozen=True, slots=True)
class _Made:
    """Rows in the order of their hash, and how many rows of each kind there are, chats too."""

    rows: list[Row]
    num_chats: int

    @property
    def kinds(self) -> set[str]:
        return {row["kind"] for row in self.rows}

    def counts(self, name: str) -> dict[str, int]:
        """Return how many rows there are of each kind, or form."""
        found = Counter(row[name] for row in self.rows if name in row)
        if name == "kind" and self.num_chats:
            found["chat"] += self.num_chats
        return dict(sorted(found.items()))

    def joined_with(self, talk: list[Row], config: InstructionConfig) -> _Made:
        """Mix in small talk, and join some rows with the one behind them."""
        mixed = _in_hash_order([*self.rows, *talk], config.seed)
        rows: list[Row] = []
        waiting: Row | None = None
        for number, row in enumerate(mixed):
            if waiting is not None:
                both = {**row, "messages": [*waiting["messages"], *row["messages"]]}
                if sources := [each["source"] for each in (waiting, row) if "source" in each]:
                    both["source"] = " and ".join(sources)
                fits = sum(len(m["content"]) for m in both["messages"]) <= MAX_JOINED_CHARS
                alike = waiting.get("weight") == row.get("weight")
                rows += [both] if fits and alike else [waiting, row]
                waiting = None
            elif random.Random(f"{config.seed}:join:{number}").random() < config.joined_share:
                waiting = row
            else:
                rows.append(row)
        return _Made(rows if waiting is None else [*rows, waiting], self.num_chats)


def _made(
    documents: Iterable[Document],
    limits: _Limits,
    seed: int,
    chats: JsonlWriter,
    weights: Mapping[str, float],
) -> _Made:
    """Make rows of documents: for each bucket those whose document has the lowest hash.

    A user's own conversations go to `chats` as they come; memory holds what the limits allow.
    """
    room = limits.buckets()
    heaps: dict[str, list[tuple[int, int, int, Row]]] = {name: [] for name in room}
    num_chats = 0
    for place, document in enumerate(documents):
        weight = _weight(document, weights)
        for number, row in enumerate(document_rows(document, seed)):
            row |= weight
            if row["kind"] == "chat":
                chats.write(row)
                num_chats += 1
                continue
            bucket = row["kind"]
            if bucket == "poem":
                bucket = f"poem {document.fields['form']}"
            # The heap's top is the highest rank kept; the place keeps rows from being compared.
            entry = (-_rank(document.id, seed), -number, -place, row)
            heap = heaps[bucket]
            if len(heap) < room[bucket]:
                heapq.heappush(heap, entry)
            elif heap and entry[:3] > heap[0][:3]:
                heapq.heapreplace(heap, entry)
    rows = [row for heap in heaps.values() for *_, row in heap]
    return _Made(_in_hash_order(rows, seed), num_chats)


def _weight(document: Document, weights: Mapping[str, float]) -> Row:
    """Return the weight of what is made of a document, as a part of a row."""
    source = document.source
    file, _, line = source.rpartition(":")
    name = source if source in weights or not line.isdigit() else file
    weight = weights.get(name, 1) * document.copies
    return {"weight": weight} if weight != 1 else {}


def _talks(kinds: set[str]) -> tuple[Talk, ...]:
    """Return the small talk that is true of a run with rows of these kinds."""
    knows_builtin = {"poem", "recipe", "article"} <= kinds
    return (*GENERAL, *(WITH_BUILTIN_TEXT if knows_builtin else WITH_OWN_TEXT))


def _is_heldout_ask(talk: Talk, ask: str) -> bool:
    """Return whether a way of asking is held out; never the first, so that all are learnt."""
    hasty = _hasty(ask)
    return hasty != _hasty(talk.asks[0]) and _rank(hasty, 0) % HELDOUT_ASK_SHARE == 0


def _heldout_talk(kinds: set[str], config: InstructionConfig) -> list[Row]:
    if not config.small_talk_repeats:
        return []
    return [
        _talk_row([ask, talk.answers[0]])
        for talk in _talks(kinds)
        for ask in talk.asks
        if _is_heldout_ask(talk, ask)
    ]


def _small_talk(kinds: set[str], config: InstructionConfig) -> list[Row]:
    """Return small talk: each way of asking, then conversations of two or three exchanges."""
    talks = [
        replace(talk, asks=tuple(ask for ask in talk.asks if not _is_heldout_ask(talk, ask)))
        for talk in _talks(kinds)
    ]
    rows = []
    for repeat in range(config.small_talk_repeats):
        rng = random.Random(f"{config.seed}:talk:{repeat}")
        rows += [
            _exchange([talk], rng, [ask if repeat % 2 == 0 else _hasty(ask)])
            for talk in talks
            for ask in talk.asks
        ]
        for language in ("en", "zh"):
            own = [talk for talk in talks if talk.language == language]
            rows += [_exchange([talk, *rng.sample(own, rng.randint(1, 2))], rng) for talk in own]
        rows += [_talk_row(conversation.turns) for conversation in CONVERSATIONS]
    return rows


def _exchange(talks: Sequence[Talk], rng: random.Random, asks: Sequence[str] | None = None) -> Row:
    asks = asks or [rng.choice(talk.asks) for talk in talks]
    answers = [rng.choice(talk.answers) for talk in talks]
    return _talk_row([text for both in zip(asks, answers, strict=True) for text in both])


def _hasty(ask: str) -> str:
    return ask.lower().rstrip(".!?。！？")


def _talk_row(turns: Sequence[str]) -> Row:
    return {"messages": _turns(turns), "kind": KIND, "subject": ""}


def _rank(key: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _in_hash_order(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the rows in an order that depends on what they say alone."""
    return sorted(rows, key=lambda row: _rank(str(row["messages"]), seed))
