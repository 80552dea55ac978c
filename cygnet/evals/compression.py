"""What ordinary compressors need for the same text: a yardstick that anyone knows."""

from __future__ import annotations

import lzma
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ZSTD_LEVEL = 19
XZ_PRESET = 9


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Bits that xz -9 and zstd -19 need for each byte of a text of `num_bytes` bytes."""

    xz: float
    zstd: float
    num_bytes: int


def compressed_bits_per_byte(texts: Sequence[str]) -> Yardstick | None:
    """Compress the texts, joined by a newline, as one file; none where there is no byte."""
    import pyarrow

    content = "\n".join(texts).encode()
    if not content:
        return None
    zstd = pyarrow.Codec("zstd", compression_level=ZSTD_LEVEL)
    return Yardstick(
        xz=8 * len(lzma.compress(content, preset=XZ_PRESET)) / len(content),
        zstd=8 * len(zstd.compress(content, asbytes=True)) / len(content),
        num_bytes=len(content),
    )


def yardsticks(texts_by_domain: Mapping[str, Sequence[str]]) -> dict[str, Yardstick]:
    """Compress each domain by itself; `all` is the bits of all domains over all their bytes."""
    found = {}
    for domain, texts in texts_by_domain.items():
        yardstick = compressed_bits_per_byte(texts)
        if yardstick:
            found[domain] = yardstick
    total = sum(yardstick.num_bytes for yardstick in found.values())
    if total:
        found["all"] = Yardstick(
            xz=sum(y.xz * y.num_bytes for y in found.values()) / total,
            zstd=sum(y.zstd * y.num_bytes for y in found.values()) / total,
            num_bytes=total,
        )
    return found
