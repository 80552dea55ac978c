"""Every room means the same by a Han character."""

import re
import unicodedata
from pathlib import Path

import pytest

import cygnet
from cygnet.corpus import sentences
from cygnet.corpus.clean.words import words
from cygnet.corpus.document import Document, document_id
from cygnet.corpus.instructions import document_rows
from cygnet.han import HAN
from cygnet.text.forms import is_poem_of_form, text_units

PACKAGE = Path(cygnet.__file__).parent


def test_the_range_is_spelt_in_one_file() -> None:
    spelt = re.compile(r"u4e00|u9fff|4E00|一-", re.IGNORECASE)
    found = [path.name for path in PACKAGE.rglob("*.py") if spelt.search(path.read_text("utf-8"))]
    assert found == ["han.py"]


def test_the_range_holds_the_ideographs_of_unicode_and_no_other_letter() -> None:
    han = re.compile(f"[{HAN}]")
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x32400)):
        name = unicodedata.name(chr(code), "")
        if name.startswith(("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH")):
            assert han.match(chr(code)), hex(code)
        elif name and chr(code) not in "々〇":
            assert not han.match(chr(code)), (hex(code), name)


@pytest.mark.parametrize("character", "一々〇㐀豈𠀀")
def test_a_character_is_one_word_everywhere(character: str) -> None:
    two = character * 2
    assert words(f"{two} swan") == [character, character, "swan"]
    assert text_units(f"{two} swan") == [character, character, "swan"]
    assert [m[1] for m in sentences._WORD.finditer(two)] == [character, character]
    line = character + "白日依山"
    poem = f"{line}，{line}。\n{line}，{line}。"
    assert is_poem_of_form(poem, "五言绝句")
    fields = {"title": "山", "form": "五言绝句", "text": poem}
    assert document_rows(Document(document_id(poem), poem, "d", "s", fields))
