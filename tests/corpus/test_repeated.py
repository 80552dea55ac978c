import json
import random
from pathlib import Path
from typing import Any

import pytest

from cygnet.corpus.pipeline import prepare
from cygnet.corpus.scale import ScaleConfig
from cygnet.corpus.settings import DataConfig
from cygnet.files import read_jsonl

LEXICON = [f"word{i}" for i in range(800)]
MENU = "Home, products, about us, contact, imprint"
FOOTER = "All rights reserved by the makers of this page.\nPrinted on recycled electrons only."


def pages(count: int) -> list[str]:
    rng = random.Random(0)
    return [
        f"{MENU}\n\n{' '.join(rng.choices(LEXICON, k=50))}.\nshort\n\n{FOOTER}"
        for _ in range(count)
    ]


def kept(tmp_path: Path, texts: list[str], **changes: Any) -> dict[int, str]:
    source = tmp_path / "pages.jsonl"
    source.write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts)))
    config = DataConfig(paths=(str(source),), heldout_share=0.1, **changes)
    out = prepare(config, tmp_path / "out", ScaleConfig(workers=1))
    rows = [*read_jsonl(out / "train.jsonl.zst"), *read_jsonl(out / "heldout.jsonl.zst")]
    return {row["fields"]["n"]: row["text"] for row in rows}


@pytest.mark.parametrize("part_mb", [0.002, 1])
@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_what_stands_in_many_documents_stays_in_the_first_alone(
    tmp_path: Path, unit: str, part_mb: float
) -> None:
    texts = pages(30)
    found = kept(tmp_path, texts, repeated_spans=unit, repeated_in=10, part_mb=part_mb)
    assert sorted(found) == list(range(30))
    for part in (MENU, FOOTER.split("\n")[0], FOOTER.split("\n")[1]):
        assert [number for number, text in found.items() if part in text] == [0]
    for number, text in found.items():
        own = texts[number].split("\n")[2]
        assert own in text and "short" in text  # few characters are no span


def test_rarer_ones_stay_and_so_does_everything_by_default(tmp_path: Path) -> None:
    texts = pages(12)
    assert kept(tmp_path, texts) == dict(enumerate(texts))
    assert kept(tmp_path, texts, repeated_spans="line", repeated_in=13) == dict(enumerate(texts))


def test_lines_before_do_not_stand_for_paragraphs_after(tmp_path: Path) -> None:
    texts = pages(30)
    kept(tmp_path, texts, repeated_spans="line", repeated_in=10)
    after = kept(tmp_path, texts, repeated_spans="paragraph", repeated_in=10)
    (tmp_path / "fresh").mkdir()
    assert after == kept(tmp_path / "fresh", texts, repeated_spans="paragraph", repeated_in=10)
