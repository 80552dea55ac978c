"""A small corpus with something for every part of the report, hostile names and texts among it."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow

from cygnet.corpus.clean.measure import STATISTICS
from cygnet.corpus.decide import Decision, Parts, decide
from cygnet.corpus.pipeline import parts_folder, prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.corpus.table import DocumentTable

HOSTILE = "<script>alert('text')</script><img src=x onerror=alert(1)>\"'&amp;"
HOSTILE_FOLDER = "<b onmouseover=alert(1)>bold<b>"
HOSTILE_FILE = "<img src=x onerror=alert(2)>.jsonl"
STOP_WORDS = "the of and to have with".split()
WORDS = [
    f"{first}{second}{third}"
    for first in ("riv", "ston", "wint", "gard", "morn", "pap")
    for second in ("er", "en", "ing", "el", "ow")
    for third in ("", "ly", "dom", "ness")
]


def sentences(rng: random.Random, count: int) -> str:
    return " ".join(
        " ".join(
            [*rng.choices(STOP_WORDS, k=2), *rng.choices(WORDS, k=5), f"{rng.randrange(99)}x."]
        )
        for _ in range(count)
    )


def write_corpus(folder: Path) -> Path:
    """Write web pages, rows, code and an evaluation set; return the file of sources."""
    rng = random.Random(11)
    raw = folder / "raw"
    for name in ("web", "rows", "code", HOSTILE_FOLDER):
        (raw / name).mkdir(parents=True)
    for i in range(60):
        text = sentences(rng, rng.choice((1, 2, 3, 6, 12)))
        if i % 6 == 0:
            text += " {curly} " * (i // 6)
        if i % 7 == 0:
            text = "# # # # " * (i // 7) + text
        page = f"<html><body><article><p>{text}</p></article></body></html>"
        (raw / "web" / f"{i}.html").write_text(page)
    rows = [sentences(rng, rng.randrange(1, 9)) for _ in range(80)]
    near = [text.replace(".", " changed.", 1) for text in rows[:20]]
    texts = [*rows, *near, *rows[20:35], *rows[20:30], "short", "-" * 300, HOSTILE * 3]
    write_rows(raw / "rows" / "a.jsonl", texts)
    mail = [f"{sentences(rng, 3)} Write to person{i}@mail{i}.org soon." for i in range(5)]
    write_rows(raw / HOSTILE_FOLDER / HOSTILE_FILE, [HOSTILE + sentences(rng, 4), *mail])
    for i in range(4):
        lines = [f"value_{i}_{j} = {rng.randrange(99)}" for j in range(30)]
        (raw / "code" / f"{i}.py").write_text("\n".join(lines) + ("\n" + "x" * 1500) * (i == 0))
    (raw / "rows" / "b.jsonl").write_text('{"text": "broken\n')
    write_rows(folder / "evaluation.jsonl", [rows[40], rows[41]])
    places = [
        f"- path: {json.dumps(str(raw / name))}\n" for name in ("rows", "code", HOSTILE_FOLDER)
    ]
    (folder / "sources.yaml").write_text(
        f"- path: {raw / 'web'}\n  rules: web\n  licence: of its own\n" + "".join(places)
    )
    return folder / "sources.yaml"


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def settings(folder: Path, **changes: object) -> DataConfig:
    values: dict[str, object] = {
        "paths": (str(folder / "sources.yaml"),),
        "evaluation": (str(folder / "evaluation.jsonl"),),
        "heldout_share": 0.1,
        "thresholds": ("symbols=0.38", "gopher_min_words=30"),
    }
    return DataConfig(**(values | changes))  # type: ignore[arg-type]


def prepared(folder: Path, **changes: object) -> Path:
    """Write the corpus and make a data folder of it."""
    write_corpus(folder)
    return prepare(settings(folder, **changes), folder / "out", ScaleConfig(workers=1))


def parts_of(out: Path) -> Parts:
    work = parts_folder(out)
    return Parts(work, json.loads((work / "written.json").read_text()))


def decided(out: Path, config: DataConfig) -> Decision:
    """Return what a run with other settings would decide, without reading anything again."""
    return decide(parts_of(out), config, config.rules_in_force(), ScaleConfig(workers=1))


def table_of(out: Path) -> DocumentTable:
    return DocumentTable.load(out, parts_folder(out))


def drawn_table(count: int, num_domains: int, text: str, seed: int = 0) -> DocumentTable:
    """Return a table of documents that nobody read, each with the text and names given."""
    rng = np.random.default_rng(seed)
    name = text[:500]
    numbers = {key: rng.gamma(1, 0.2, count).astype(np.float32) for key in STATISTICS}
    numbers["chars"] = (numbers["chars"] * 5000).astype(np.float32)
    numbers["words"] = (numbers["words"] * 900).astype(np.float32)
    numbers |= {key: np.zeros(count, np.float32) for key in ("private", "harmful")}
    domains = [f"{name}{i % num_domains}" for i in range(count)]
    columns = {
        "id": [f"{i:016x}" for i in range(count)],
        "source": [f"{name}/{i}.html" for i in range(count)],
        "domain": domains, "language": domains, "licence": domains,
        "kind": ["html"] * count, "rules": [""] * count,
        "is_conversation": [False] * count, "copies": [1] * count,
        "repeated_chars": [0] * count,
        "position": rng.random(count), "bytes": numbers["chars"].astype(np.int64),
    }  # fmt: skip
    table = DocumentTable(
        pyarrow.table(columns | numbers), DataConfig(), np.full(count, "train", object),
        np.full(count, -1, np.int64), np.full(count, np.nan, np.float32), numbers,
        lambda number: text,
    )  # fmt: skip
    for rule, mask in reversed(table.broken(table.rules).items()):
        table.outcome[mask] = rule
    stays = np.flatnonzero(table.outcome == "train")
    if len(stays) > 3:
        table.outcome[stays[1:3]] = "near_duplicate"
        table.duplicate_of[stays[1:3]], table.similarity[stays[1:3]] = stays[0], 0.75
    return table
