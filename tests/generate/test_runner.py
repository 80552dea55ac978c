"""Our forward pass in C++ gives the logits of torch's (invariants 5 and 6)."""

import ctypes
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.generate import native
from cygnet.generate.native import NativeForward, compiled
from cygnet.generate.quantize import Weights
from cygnet.generate.runner import Part, Runner
from cygnet.model.transformer import Transformer
from tests.models import SMALL, random_model

MAX_LEN = 70
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    # Widths that no vector divides, one head a group, six heads a group.
    "odd": {"hidden_size": 52, "head_dim": 18, "intermediate_size": 75, "vocab_size": 333},
    "no groups": {"num_heads": 3, "num_kv_heads": 3, "head_dim": 72},
    "one key head": {"num_heads": 6, "num_kv_heads": 1, "head_dim": 20},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False, "tie_embeddings": False},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_max_position": 16},
}


def model_of(shape: str, dtype: torch.dtype = torch.float32) -> Transformer:
    model = random_model(dataclasses.replace(SMALL, **SHAPES[shape]))
    model.compute_dtype = dtype
    return model


def both(model: Transformer, weights: Weights = "float") -> tuple[Runner, Runner]:
    ours, torchs = (Runner(model, 6, MAX_LEN, weights, is_native=i) for i in (True, False))
    assert ours._native is not None
    return ours, torchs


STEPS: list[Callable[[Runner], torch.Tensor]] = [
    lambda r: r.prefill([Part(0, 0, list(range(40)))]),
    lambda r: r.prefill([Part(1, 0, [5, 6]), Part(2, 0, list(range(9)))]),
    lambda r: r.prefill([Part(2, 9, [1, 2, 3]), Part(3, 0, [4]), Part(4, 0, [5, 6, 7])]),
    lambda r: r.decode([[7]], [40])[:, 0],
    lambda r: r.decode([[7, 8, 9], [8, 1, 1]], [41, 2])[:, 2],
    lambda r: r.decode([[7], [8], [9], [1], [2]], [44, 5, 12, 1, 3])[:, 0],
]


@pytest.mark.parametrize("shape", SHAPES)
def test_native_is_torch(shape: str) -> None:
    """For prompts and answers, one row and several, several tokens a row."""
    ours, torchs = both(model_of(shape))
    with torch.inference_mode():
        for step in STEPS:
            torch.testing.assert_close(step(ours), step(torchs), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("weights", ["float", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_native_rounds_no_more_than_torch(dtype: torch.dtype, weights: Weights) -> None:
    """Both are held against the same weights, computed in float32."""
    ours, torchs = both(model_of("qwen3", dtype), weights)
    exact = Runner(model_of("qwen3"), 6, MAX_LEN, weights, is_native=False)
    if weights == "float" and dtype == torch.bfloat16:
        rounded = model_of("qwen3")
        for parameter in rounded.parameters():
            parameter.data = parameter.data.bfloat16().float()
        exact = Runner(rounded, 6, MAX_LEN, is_native=False)
    with torch.inference_mode():
        for step in STEPS:
            expected, found, other = step(exact), step(ours), step(torchs)
            bound = 1.2 * (other - expected).norm() + 1e-5 * expected.norm()
            assert (found - expected).norm() <= bound


@functools.cache
def plain() -> ctypes.CDLL:
    """The code for a processor without particular instructions."""
    return ctypes.CDLL(str(compiled(shutil.which("g++") or "c++", "-mtune=generic")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", ["odd", "qwen3"])
@pytest.mark.parametrize("machine", ["this", "any"])
@settings(max_examples=10)
@given(data=st.data())
def test_the_bits_depend_on_a_slots_own_tokens_alone(
    dtype: torch.dtype, shape: str, machine: str, data: st.DataObject
) -> None:
    """Whatever the chunks, the rows beside, and the slot."""
    model = model_of(shape, dtype)
    kept: Any = data.draw(st.sampled_from(["float", "int8"] + ["int4"] * (shape == "qwen3")))

    def runner_of(num_slots: int) -> Runner:
        runner = Runner(model, num_slots, MAX_LEN, kept)
        if machine == "any":
            runner._native = NativeForward(runner.model, runner.cache, plain())
        return runner

    number = st.integers(0, model.config.vocab_size - 1)
    tokens = data.draw(st.lists(number, min_size=2, max_size=MAX_LEN), label="tokens")
    with torch.inference_mode():
        alone = runner_of(1)
        expected = [alone.decode([[token]], [at])[0, 0] for at, token in enumerate(tokens)]
        runner, at = runner_of(6), 0
        while at < len(tokens):
            size = data.draw(st.integers(1, len(tokens) - at), label="chunk")
            beside = data.draw(st.lists(number, max_size=9), label="beside")
            parts = [Part(4, at, tokens[at : at + size])]
            if beside:
                parts.insert(data.draw(st.integers(0, 1)), Part(2, 0, beside))
            at += size
            found = runner.prefill(parts)[[part.slot for part in parts].index(4)]
            assert torch.equal(found, expected[at - 1])


def test_any_processor_computes_the_same() -> None:
    """The code for processors without these instructions, against the one for this machine."""
    for dtype in (torch.float32, torch.bfloat16):
        for weights in ("float", "int8", "int4"):
            ours = Runner(model_of("qwen3", dtype), 6, MAX_LEN, weights)
            other = Runner(model_of("qwen3", dtype), 6, MAX_LEN, weights)
            other._native = NativeForward(other.model, other.cache, plain())
            with torch.inference_mode():
                for step in STEPS:
                    found, expected = step(other), step(ours)
                    rounding = 1e-6 if dtype == torch.float32 else 2**-6
                    assert (found - expected).norm() <= rounding * expected.norm()


FEWER = """
from cygnet.generate.runner import Part, Runner
from tests.models import random_model
print(float(Runner(random_model(), 1, 32).prefill([Part(0, 0, list(range(9)))]).norm()))
"""


def test_fewer_threads_than_asked_for_do_the_work() -> None:
    found = {
        subprocess.run(
            [sys.executable, "-c", FEWER], env={**os.environ, "PYTHONPATH": ".", **limits},
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout
        for limits in ({}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"})
    }  # fmt: skip
    assert len(found) == 1


def test_without_a_compiler_a_line_is_said_and_torch_computes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/bin/false")
    assert native.library() is None
    assert "answers come several times slower" in capsys.readouterr().err
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert native.library() is None
    assert "apt install g++" in capsys.readouterr().err
