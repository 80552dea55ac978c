from __future__ import annotations

import random
import string

from cygnet.evals.compression import compressed_bits_per_byte, yardsticks


def noise(count: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters[:16], k=count))


def test_text_that_repeats_needs_far_less_than_a_bit():
    found = compressed_bits_per_byte(["the same line again"] * 2000)
    assert found and found.xz < 0.1 and found.zstd < 0.1


def test_sixteen_even_letters_need_four_bits():
    found = compressed_bits_per_byte([noise(50_000)])
    assert found
    assert 4 <= found.xz < 4.4
    assert 4 <= found.zstd < 4.4


def test_bytes_are_those_of_utf8():
    found = compressed_bits_per_byte(["秋水", "a"])
    assert found and found.num_bytes == 8


def test_all_is_weighted_by_bytes():
    found = yardsticks({"even": [noise(9000)], "dull": ["a" * 27_000], "empty": [""]})
    assert set(found) == {"even", "dull", "all"}
    expected = (found["even"].xz * 9000 + found["dull"].xz * 27_000) / 36_000
    assert abs(found["all"].xz - expected) < 1e-12


def test_no_text_has_no_yardstick():
    assert yardsticks({}) == {}
