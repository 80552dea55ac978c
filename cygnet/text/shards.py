"""Token shards: documents as raw ids on disk, memory-mapped to read.

A shard folder holds, for each shard of up to `SHARD_TOKENS` tokens,
`shard_00000.tokens` (ids, little-endian uint16, or uint32 where the vocabulary needs it),
`shard_00000.offsets` (little-endian uint64: where each document begins, and the end) and, where
only some tokens are learnt, `shard_00000.labels` (a byte a token, 1 = learnt); where documents are
of several kinds, `shard_00000.kinds` (a byte a document, an index into the manifest's `kinds`); and
`manifest.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cygnet.errors import UserError
from cygnet.files import folder_atomic, sha256_file, write_json
from cygnet.progress import say

FORMAT_VERSION = 1
SHARD_TOKENS = 2**28
MAX_KINDS = 256
Check = Literal["sha256", "size"]
"""How the files of shards are held against the manifest: every byte, or their sizes alone."""
OTHER_KINDS = "other"
"""What all kinds of documents are called that come after the first 255."""
_MANIFEST = "manifest.json"

Document = (
    tuple[Sequence[int], Sequence[bool] | None] | tuple[Sequence[int], Sequence[bool] | None, str]
)
"""Ids, which of them are learnt, and where shards tell them apart, of which kind it is."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of little-endian uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class ShardWriter:
    """Append documents to the shards of a folder. Use inside `folder_atomic`; then `finish`."""

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        has_labels: bool,
        shard_tokens: int,
        has_kinds: bool = False,
    ) -> None:
        self._folder, self._shard_tokens = folder, shard_tokens
        optional = {"labels": has_labels, "kinds": has_kinds}
        self._suffixes = ["tokens", *(name for name, wanted in optional.items() if wanted)]
        self._kinds: dict[str, int] = {}
        self._dtype = token_dtype(vocab_size)
        self._files: dict[str, IO[bytes]] = {}
        self._lengths: list[NDArray[np.int64]] = []
        self._num_tokens = 0
        self._shards: list[dict[str, Any]] = []
        self._open()

    def append(
        self,
        tokens: NDArray[Any],
        lengths: NDArray[np.int64],
        labels: NDArray[np.uint8] | None = None,
        kind: str | None = None,
    ) -> None:
        """Append documents that lie one after another in `tokens`; all go to the same shard.

        Args:
            tokens: (N,) ids.
            lengths: (D,) tokens of each document; their sum is N.
            labels: (N,) 1 where the token is learnt; wanted if the shards have labels.
            kind: of all of them; wanted if the shards have kinds.
        """
        if self._num_tokens and self._num_tokens + len(tokens) > self._shard_tokens:
            self._close()
            self._open()
        self._files["tokens"].write(tokens.astype(self._dtype).tobytes())
        if labels is not None:
            self._files["labels"].write(labels.tobytes())
        if kind is not None:
            self._files["kinds"].write(bytes([self._kind_number(kind)]) * len(lengths))
        self._lengths.append(lengths)
        self._num_tokens += len(tokens)

    def finish(self, tokenizer_hash: str, source: dict[str, Any]) -> dict[str, Any]:
        """Close the shards, write the manifest, return it."""
        self._close()
        manifest = {
            "format": FORMAT_VERSION,
            "dtype": self._dtype.str,
            "tokenizer_hash": tokenizer_hash,
            "num_tokens": sum(shard["num_tokens"] for shard in self._shards),
            "num_documents": sum(shard["num_documents"] for shard in self._shards),
            "has_labels": "labels" in self._suffixes,
            "kinds": list(self._kinds),
            "source": source,
            "shards": self._shards,
        }
        write_json(self._folder / _MANIFEST, manifest)
        return manifest

    def _kind_number(self, kind: str) -> int:
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS - 1:
            kind = OTHER_KINDS
        return self._kinds.setdefault(kind, len(self._kinds))

    def _name(self, suffix: str) -> str:
        return f"shard_{len(self._shards):05d}.{suffix}"

    def _open(self) -> None:
        self._lengths, self._num_tokens = [], 0
        for suffix in self._suffixes:
            self._files[suffix] = open(self._folder / self._name(suffix), "wb")  # noqa: SIM115

    def _close(self) -> None:
        for file in self._files.values():
            file.close()
        lengths = np.concatenate([np.zeros(1, np.int64), *self._lengths])
        np.cumsum(lengths).astype("<u8").tofile(self._folder / self._name("offsets"))
        names = [self._name(suffix) for suffix in (*self._suffixes, "offsets")]
        shard = {
            "num_tokens": self._num_tokens,
            "num_documents": len(lengths) - 1,
            "sha256": {name: sha256_file(self._folder / name) for name in names},
        }
        self._shards.append(shard)


def recorded_source(
    folder: Path, tokenizer_hash: str, source: dict[str, Any]
) -> dict[str, Any] | None:
    """Return what the manifest says of the source, if whole shards were made from just it.

    None where there are no shards, a damaged one, another tokenizer's or another source's; of
    shards that are there, it is said why they are made again.
    """
    if not folder.exists():
        return None
    try:
        recorded: dict[str, Any] = ShardReader(folder, tokenizer_hash).manifest["source"]
    except UserError as error:
        say(f"tokens: made again, for {str(error).partition('; ')[0]}")
        return None
    changed = [name for name, value in source.items() if recorded.get(name) != value]
    if not changed:
        return recorded
    what = "its text changed" if "sha256" in changed else f"{' and '.join(changed)} changed"
    say(f"{folder}: tokens made again, for {what}")
    return None


def write_shards(
    folder: Path,
    documents: Iterable[Document],
    tokenizer_hash: str,
    vocab_size: int,
    source: dict[str, Any],
    has_labels: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    has_kinds: bool = False,
) -> dict[str, Any]:
    """Write documents to a shard folder, whole or not at all, and return its manifest.

    Args:
        folder: replaced if it is there.
        documents: ids of each, with `has_labels` also which of them are learnt, and with
            `has_kinds` also its kind.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer that made the ids.
        vocab_size: of that tokenizer.
        source: what the documents were made from; kept in the manifest.
        has_labels: keep the masks.
        shard_tokens: a new shard begins when one would hold more tokens than this.
        has_kinds: keep the kinds.
    """
    with folder_atomic(folder) as temporary:
        writer = ShardWriter(temporary, vocab_size, has_labels, shard_tokens, has_kinds)
        for ids, is_label, *kind in documents:
            labels = np.asarray(is_label, np.uint8) if has_labels else None
            length = np.array([len(ids)], np.int64)
            writer.append(np.asarray(ids, np.int64), length, labels, *kind)
        return writer.finish(tokenizer_hash, source)


class Shard:
    """One memory-mapped shard.

    Attributes:
        path: without the suffix.
        tokens: (N,) uint16 or uint32.
        offsets: (D + 1,) uint64.
        labels: (N,) uint8, or None where all tokens are learnt.
        kinds: (D,) uint8, or None where documents are not told apart.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], has_labels: bool, has_kinds: bool = False
    ) -> None:
        self.path = path
        self.tokens = map_file(path.with_suffix(".tokens"), dtype)
        self.offsets = map_file(path.with_suffix(".offsets"), np.dtype("<u8"))
        labels = map_file(path.with_suffix(".labels"), np.dtype("u1")) if has_labels else None
        self.labels: NDArray[np.uint8] | None = labels
        kinds = map_file(path.with_suffix(".kinds"), np.dtype("u1")) if has_kinds else None
        self.kinds: NDArray[np.uint8] | None = kinds


class ShardReader:
    """The shards of a folder, checked.

    Args:
        folder: as `write_shards` makes it.
        tokenizer_hash: `Tokenizer.hash` of the tokenizer in use; none takes any.
        check: `sha256` reads every byte, with all cores (about a second for a GB); `size` finds
            what is missing or cut, at once.

    Attributes:
        manifest, shards, num_tokens, num_documents, has_labels: as the manifest has them.
        kinds: names of the kinds of documents; none where they are not told apart.

    Raises:
        UserError: no shards there, another tokenizer's, or a damaged file; names which.
    """

    def __init__(
        self, folder: Path | str, tokenizer_hash: str | None = None, check: Check = "sha256"
    ) -> None:
        self.folder = Path(folder)
        self.manifest = self._read_manifest()
        made_with = self.manifest["tokenizer_hash"]
        if tokenizer_hash is not None and made_with != tokenizer_hash:
            raise UserError(
                f"{folder}: made with another tokenizer ({made_with[:12]}) than the one in use "
                f"({tokenizer_hash[:12]}); tokenize the text again"
            )
        self.num_tokens: int = self.manifest["num_tokens"]
        self.num_documents: int = self.manifest["num_documents"]
        self.has_labels: bool = self.manifest["has_labels"]
        self.kinds: list[str] = self.manifest.get("kinds", [])
        self._check_sizes()
        if check == "sha256":
            self._check_bytes()
        dtype = np.dtype(self.manifest["dtype"])
        self.shards = [
            Shard(self.folder / f"shard_{i:05d}", dtype, self.has_labels, bool(self.kinds))
            for i in range(len(self.manifest["shards"]))
        ]

    def document(self, number: int) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
        """Return the ids of a document, counted over all shards, and which of them are learnt."""
        for shard in self.shards:
            if number < len(shard.offsets) - 1:
                span = slice(int(shard.offsets[number]), int(shard.offsets[number + 1]))
                return shard.tokens[span], None if shard.labels is None else shard.labels[span]
            number -= len(shard.offsets) - 1
        raise IndexError(number)

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / _MANIFEST
        if not path.is_file():
            raise UserError(f"{self.folder}: no token shards ({_MANIFEST} is missing); make them")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            found = manifest["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error!r}); tokenize the text again") from error
        if found != FORMAT_VERSION:
            raise UserError(
                f"{path}: format {found}, but this version reads {FORMAT_VERSION}; tokenize again"
            )
        return manifest

    def _check_sizes(self) -> None:
        token_bytes = np.dtype(self.manifest["dtype"]).itemsize
        for shard in self.manifest["shards"]:
            sizes = {
                ".tokens": shard["num_tokens"] * token_bytes,
                ".labels": shard["num_tokens"],
                ".kinds": shard["num_documents"],
                ".offsets": (shard["num_documents"] + 1) * 8,
            }
            for path in (self.folder / name for name in shard["sha256"]):
                if not path.is_file():
                    raise UserError(f"{path}: missing; tokenize the text again")
                found, wanted = path.stat().st_size, sizes[path.suffix]
                if found != wanted:
                    raise UserError(
                        f"{path}: damaged (it has {found} bytes, not {wanted}); tokenize the text "
                        "again"
                    )

    def _check_bytes(self) -> None:
        wanted = {
            self.folder / name: checksum
            for shard in self.manifest["shards"]
            for name, checksum in shard["sha256"].items()
        }
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for path, found in zip(wanted, pool.map(sha256_file, wanted), strict=True):
                if found != wanted[path]:
                    raise UserError(
                        f"{path}: damaged (its checksum is not the manifest's); tokenize the text "
                        "again"
                    )


def map_file(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a file of numbers, memory-mapped to read."""
    if path.stat().st_size == 0:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
