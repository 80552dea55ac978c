"""A classifier of a person's own: from texts they call good and bad, fast enough for all text.

Hashed words and pairs of words, their mean weight, a logistic function: what fastText's supervised
mode comes to with two classes (Joulin et al. 2016, arXiv:1607.01759), and what DCLM chose its text
by (Li et al. 2024, arXiv:2406.11794). It is trained in `quality_training`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cygnet.corpus.clean.words import TextBatch
from cygnet.errors import UserError
from cygnet.files import write_atomic

FILE = "quality.safetensors"
FORMAT, VERSION = "cygnet-quality", 1
BUCKET_BITS = 18
"""2**18 buckets, a megabyte of weights: it stays in a core's cache."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """Weights of words and pairs of words.

    Attributes:
        weights: float32 (2**BUCKET_BITS).
        bias: the logit of a text without words.
        made_of: what the file says about the examples, as JSON can hold it.
    """

    weights: NDArray[np.float32]
    bias: float
    made_of: dict[str, Any] = field(default_factory=dict)

    def scores(self, batch: TextBatch) -> NDArray[np.float32]:
        """Return (documents), the probability that each is good, if as many are as are bad.

        It is that of the mean weight of words and pairs, so length does not matter, and it does
        not depend on the batch's other documents.
        """
        sums, counts = np.zeros(len(batch)), np.zeros(len(batch))
        for buckets, offsets in buckets_of(batch):
            values = self.weights.take(buckets)
            filled = np.flatnonzero(np.diff(offsets))
            if len(filled):
                sums[filled] += np.add.reduceat(values, offsets[filled], dtype=np.float64)
            counts += np.diff(offsets)
        return sigmoid(sums / np.maximum(counts, 1) + self.bias).astype(np.float32)

    def to_bytes(self) -> bytes:
        """Return the file; the same model gives the same bytes."""
        from safetensors.numpy import save

        about = {"format": FORMAT, "version": VERSION, "words": _probe(), "made_of": self.made_of}
        tensors = {"weights": self.weights, "bias": np.array([self.bias])}
        # One entry: safetensors writes several in no fixed order.
        return save(tensors, {"about": json.dumps(about, sort_keys=True)})

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal, of the file's bytes: what a manifest names the model by."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> QualityModel:
        """Read a file that `save` wrote, or `FILE` of a folder of `cygnet data train-filter`.

        Raises:
            UserError: it is not there, no such file, or made with other words than today's.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        file = path / FILE if path.is_dir() else path
        train = "make one with cygnet data train-filter"
        try:
            content = file.read_bytes()
            tensors = load(content)
        except FileNotFoundError:
            raise UserError(f"{file}: no such quality filter; {train}") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        except SafetensorError as error:
            raise UserError(f"{file}: no whole safetensors file ({error}); {train}") from None
        about = _about(content)
        if about.get("format") != FORMAT:
            raise UserError(f"{file}: a safetensors file, but no quality filter; {train}")
        if about.get("version") != VERSION:
            raise UserError(
                f"{file}: a quality filter of version {about.get('version')}, and this Cygnet "
                f"reads version {VERSION}; train it again with cygnet data train-filter"
            )
        if about.get("words") != _probe():
            raise UserError(
                f"{file}: made by a Cygnet that cut text into other words; train it again with "
                "cygnet data train-filter"
            )
        _check_tensors(tensors, file)
        bias = float(tensors["bias"][0])
        return cls(weights=tensors["weights"], bias=bias, made_of=about.get("made_of", {}))


def _about(content: bytes) -> dict[str, Any]:
    """Return our entry in the header of a valid safetensors file, or an empty object."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        about = json.loads(header.get("__metadata__", {}).get("about", "{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _check_tensors(tensors: dict[str, NDArray[Any]], file: Path) -> None:
    wanted = {"weights": (np.float32, (1 << BUCKET_BITS,)), "bias": (np.float64, (1,))}
    for name, (dtype, shape) in wanted.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tensor.shape != shape:
            raise UserError(f"{file}: its {name!r} is not {shape[0]} numbers of {dtype.__name__}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{file}: its {name!r} holds what is no number; train it again")


def _probe() -> str:
    """Return a hash that changes whenever words are cut or hashed in another way."""
    batch = TextBatch(["The swan's 2 + 2 = 4 lakes_ 天鹅 カナ Über-Wasser नमस्ते"])
    hashes = b"".join(buckets.tobytes() for buckets, _ in buckets_of(batch))
    return hashlib.sha256(hashes).hexdigest()[:16]


def buckets_of(batch: TextBatch) -> Iterator[tuple[Ints, Ints]]:
    """Yield (buckets of all documents, where each document's begin): of words, then of pairs."""
    shift = np.uint64(64 - BUCKET_BITS)
    yield (batch.word_hashes >> shift).view(np.int64), batch.word_offsets
    pairs, offsets = batch.ngrams(2)
    yield (pairs >> shift).view(np.int64), offsets


def sigmoid(logits: Floats) -> Floats:
    """Return probabilities; of no logit does it overflow."""
    return 0.5 * (1 + np.tanh(0.5 * logits))
