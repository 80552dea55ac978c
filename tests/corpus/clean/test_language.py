import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.corpus.builtin import builtin_documents
from cygnet.corpus.clean.language import (
    CHARS_AT_PLACE,
    PLACES,
    UNDETERMINED,
    _NaiveBayes,
    languages,
    sample,
)
from cygnet.corpus.clean.language_codes import CODES, nearest_codes
from cygnet.corpus.settings import DataConfig
from cygnet.errors import UserError

SENTENCES = {
    "ar": "كان يا ما كان في قديم الزمان ملك عادل يحكم مدينة كبيرة على شاطئ البحر",
    "bg": "Когато слънцето изгря над планината, овчарите вече бяха тръгнали със стадата си.",
    "cs": "Když slunce vyšlo nad horami, pastýři už dávno odešli se svými stády na pastvu.",
    "da": "Da solen stod op over bjergene, var hyrderne allerede gået ud med deres får.",
    "de": "Als die Sonne über den Bergen aufging, waren die Hirten längst mit ihren Schafen fort.",
    "el": "Όταν ο ήλιος ανέτειλε πάνω από τα βουνά, οι βοσκοί είχαν ήδη φύγει με τα πρόβατα.",
    "en": "When the sun rose over the mountains, the shepherds had long gone with their sheep.",
    "es": "Cuando el sol salió sobre las montañas, los pastores ya se habían ido con sus ovejas.",
    "fi": "Kun aurinko nousi vuorten ylle, paimenet olivat jo lähteneet lampaidensa kanssa.",
    "fr": "Quand le soleil se leva sur les montagnes, les bergers étaient déjà partis avec eux.",
    "he": "כאשר השמש זרחה מעל ההרים הרועים כבר יצאו לדרך עם הכבשים שלהם",
    "hi": "जब सूरज पहाड़ों के ऊपर निकला तब तक चरवाहे अपनी भेड़ों के साथ जा चुके थे।",
    "hu": "Amikor a nap felkelt a hegyek fölött, a pásztorok már régen elindultak a juhaikkal.",
    "id": "Ketika matahari terbit di atas gunung, para gembala sudah lama pergi dengan dombanya.",
    "it": "Quando il sole sorse sopra le montagne, i pastori erano già partiti con le pecore.",
    "ja": "太陽が山の上に昇ったとき、羊飼いたちはすでに羊を連れて出かけていた。",
    "ko": "해가 산 위로 떠올랐을 때 목동들은 이미 양들을 데리고 떠난 뒤였다.",
    "nl": "Toen de zon boven de bergen opkwam, waren de herders al lang met hun schapen weg.",
    "pl": "Kiedy słońce wzeszło nad górami, pasterze już dawno odeszli ze swoimi owcami.",
    "pt": "Quando o sol nasceu sobre as montanhas, os pastores já tinham saído com as ovelhas.",
    "ro": "Când soarele a răsărit deasupra munților, păstorii plecaseră deja cu oile lor.",
    "ru": "Когда солнце взошло над горами, пастухи уже давно ушли со своими овцами.",
    "sv": "När solen gick upp över bergen hade herdarna redan gått med sina får för länge sedan.",
    "th": "เมื่อพระอาทิตย์ขึ้นเหนือภูเขา คนเลี้ยงแกะก็ออกไปพร้อมกับฝูงแกะแล้ว",
    "tr": "Güneş dağların üzerinden doğduğunda çobanlar koyunlarıyla çoktan yola çıkmıştı.",
    "uk": "Коли сонце зійшло над горами, пастухи вже давно пішли зі своїми вівцями.",
    "vi": "Khi mặt trời mọc trên núi, những người chăn cừu đã đi cùng đàn cừu từ lâu rồi.",
    "zh": "太阳从山上升起的时候，牧羊人早已赶着羊群离开了村庄。",
}


def codes(*texts: str) -> list[str]:
    return [code for code, _ in languages(texts)]


def test_a_sentence_of_each_language_is_told() -> None:
    assert codes(*SENTENCES.values()) == list(SENTENCES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", UNDETERMINED),
        (" \n\t", UNDETERMINED),
        ("3.14 + 2 = ?! 10:45", UNDETERMINED),
        ("白日依山尽，黄河入海流。欲窮千里目，更上一層樓。", "zh"),
        ("我们用 Python 和 PyTorch 训练一个小语言模型，然后用 vLLM 部署。", "zh"),
        ("Pythonで小さな言語モデルを訓練する方法", "ja"),
        ("カタカナ", "ja"),
        ("THE SHEPHERDS HAD LONG GONE WITH THEIR SHEEP OVER THE HILLS.", "en"),
        ("The poem 静夜思 by Li Bai is known to every child who goes to school there.", "en"),
        ("cafe\u0301s et the\u0301s sont servis a\u0300 la terrasse toute la journe\u0301e", "fr"),
    ],
)
def test_the_language_by_example(text: str, expected: str) -> None:
    assert codes(text) == [expected]


def test_a_long_text_is_judged_by_three_places() -> None:
    text = "a" * 500 + "b" * 500 + "c" * 500
    parts = sample(text).split(" ")
    assert parts == [letter * CHARS_AT_PLACE for letter in "abc"]
    assert sample(text[:PLACES]) == text[:PLACES]
    noise = "0123456789" * 500
    in_the_middle = noise + SENTENCES["de"] * 40 + noise
    assert codes(in_the_middle, noise) == ["de", UNDETERMINED]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=400), max_size=8))
def test_any_text_gets_an_answer_that_does_not_depend_on_its_company(texts: list[str]) -> None:
    together = languages(texts)
    assert together == [languages([text])[0] for text in texts]
    for text, (code, confidence) in zip(texts, together, strict=True):
        assert code.isalpha() and 0 <= confidence <= 1
        if not any(map(str.isalpha, text)):
            assert code == UNDETERMINED


def test_half_a_character_is_read() -> None:
    assert codes("\ud800 when the sun rose over the mountains \udfff") == ["en"]


def test_answers_are_those_of_the_library() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [text[start : start + 60] for text in SENTENCES.values() for start in (0, 11, 30)]
    texts += [" ".join(random.Random(seed).sample(texts, 2)) for seed in range(60)] + ["", "x"]
    ours = _NaiveBayes.of_library().languages(texts)
    for text, (code, confidence) in zip(texts, ours, strict=True):
        label, probability = identifier.classify(text)
        if text and label != "zxx":
            assert (code, confidence) == (label, pytest.approx(probability, abs=1e-3))


def test_built_in_text_is_of_the_language_that_its_domain_names() -> None:
    documents = [d for i, d in enumerate(builtin_documents()) if i % 59 == 0]
    named = [(d.domain[-2:], d.text) for d in documents if d.domain[-3:] in ("_en", "_zh")]
    assert len(named) > 500
    answers = codes(*(text for _, text in named))
    right = sum(code == named[i][0] for i, code in enumerate(answers))
    assert right > 0.99 * len(named)


def test_the_codes_are_those_that_a_text_can_have() -> None:
    labels = set(map(str, _NaiveBayes.of_library().labels)) - {"zxx"}
    assert set(CODES) == labels | {"ja", "ko", "zh", UNDETERMINED}
    assert len(CODES) == len(set(CODES)) and list(CODES) == sorted(CODES)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("EN", "en"), ("eng", "en"), ("English", "en"), ("chinese", "zh"), ("cn", "zh"),
        ("zh-CN", "zh"), ("jp", "ja"), ("deu", "de"), ("ger", "de"), ("pt_BR", "pt"),
        ("nb", "no"), ("fre", "fr"), ("xx", "xh"), ("german", "de"),
    ],
)  # fmt: skip
def test_a_code_that_is_none_is_refused_in_a_line_with_the_nearest(
    word: str, expected: str
) -> None:
    with pytest.raises(UserError) as error:
        DataConfig(languages=("en", word))
    told = str(error.value)
    assert told.startswith(f"languages: no language {word!r}") and "\n" not in told
    assert expected in re.findall(r"'([a-z]+)'", told.split("did you mean")[1])
    assert nearest_codes(word)[0] == expected


def test_every_code_is_taken_and_what_is_like_none_is_refused_too() -> None:
    assert DataConfig(languages=CODES).languages == CODES
    for word in ("", "1", "汉语", "*"):
        with pytest.raises(UserError, match="codes such as en, zh, de"):
            DataConfig(languages=(word,))


def test_the_unpacked_model_is_mapped_mended_and_can_do_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = codes(*SENTENCES.values())

    def answers(cache: Path) -> list[str]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        _NaiveBayes.of_library.cache_clear()
        return codes(*SENTENCES.values())

    try:
        assert answers(tmp_path) == expected
        (weights,) = tmp_path.rglob("weights.npy")
        whole = weights.read_bytes()
        assert answers(tmp_path) == expected
        assert isinstance(_NaiveBayes.of_library().weights, np.memmap)
        for damaged in (whole[:-1], b"", b"PK\x03\x04", whole[:200] + bytes(len(whole) - 200)):
            weights.write_bytes(damaged)
            assert answers(tmp_path) == expected
            assert weights.read_bytes() == whole
        weights.unlink()
        assert answers(tmp_path) == expected and weights.exists()
        assert len(list((tmp_path / "cygnet").iterdir())) == 1  # nothing is left behind
        (tmp_path / "file").touch()
        assert answers(tmp_path / "file") == expected
    finally:
        _NaiveBayes.of_library.cache_clear()
