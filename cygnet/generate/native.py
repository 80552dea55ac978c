"""The forward pass and the drawing of tokens in C++ (`cpp/`), for processors.

A small model's step is dozens of products of a tenth of a millisecond; torch's way between them
takes longer than they do. The library is compiled once on each machine, in a few seconds, for
just that processor, and kept in the user's cache folder.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int64, c_void_p
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cygnet.errors import UserError
from cygnet.files import cache_folder
from cygnet.generate.quantize import QuantizedLinear
from cygnet.generate.sampling import Sampling
from cygnet.model.kv_cache import KVCache
from cygnet.model.rope import rope_angles
from cygnet.model.transformer import Block, Transformer
from cygnet.progress import say

FOLDER = Path(__file__).with_name("cpp")
FLAGS = (
    "-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing",
    "-fopenmp", "-shared", "-fPIC",
)  # fmt: skip
_KINDS = {"float": 0, "int8": 1, "int4": 2}


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("kind", c_int64), ("outputs", c_int64), ("inputs", c_int64),
        ("weights", c_void_p), ("scale", c_void_p), ("zero", c_void_p), ("bias", c_void_p),
    ]  # fmt: skip


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Matrix) for name in ("qkv", "out", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, c_void_p) for name in ("keys", "values")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in (
            "is_bf16", "hidden_size", "num_heads", "num_kv_heads", "head_size",
            "intermediate_size", "max_len", "num_layers",
        )),
        ("norm_epsilon", c_float), ("score_scale", c_float),
        ("layers", ctypes.POINTER(_Layer)),
        *((name, c_void_p) for name in ("embeddings", "final_norm", "cosines", "sines")),
        ("output", _Matrix),
    ]  # fmt: skip


_Numbers = ctypes.POINTER(c_int64)


class _Tokens(ctypes.Structure):
    _fields_ = [
        ("count", c_int64), ("ids", _Numbers), ("slots", _Numbers), ("positions", _Numbers),
        ("num_wanted", c_int64), ("wanted", _Numbers), ("logits", c_void_p),
    ]  # fmt: skip


class _Choice(ctypes.Structure):
    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "draw")),
        ("top_k", c_int64),
    ]


class NativeForward:
    """A model's forward pass over the slots of a cache.

    Args:
        model: laid out for inference (`runner.laid_out`), on the CPU, bfloat16 or float32.
        cache: of the same type; read and written.
        library: `library()`.
    """

    def __init__(self, model: Transformer, cache: KVCache, library: ctypes.CDLL) -> None:
        config = model.config
        self._forward = library.cygnet_forward
        self._kept: list[Tensor] = []  # what the pointers point to
        self._vocab_size = config.vocab_size
        positions = torch.arange(cache.max_len)[None]
        cosines, sines = rope_angles(positions, model.inverse_frequencies)
        blocks = cast(Sequence[Block], model.model.layers)
        layers = [self._layer(block, cache) for block in blocks]
        self._model = _Model(
            is_bf16=model.compute_dtype == torch.bfloat16, hidden_size=config.hidden_size,
            num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
            head_size=config.head_size, intermediate_size=config.intermediate_size,
            max_len=cache.max_len, num_layers=config.num_layers, norm_epsilon=config.rms_norm_eps,
            score_scale=blocks[0].self_attn.score_scale,
            layers=(_Layer * len(layers))(*layers),
            embeddings=self._pointer(model.model.embed_tokens.weight),
            final_norm=self._pointer(model.model.norm.weight),
            cosines=self._pointer(cosines), sines=self._pointer(sines),
            output=self._matrix(model.output_weight),
        )  # fmt: skip
        self._address = ctypes.byref(self._model)

    def __call__(
        self,
        token_ids: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:
        """Read tokens, each at its position of its slot; earlier ones must be filled or among them.

        Returns:
            The logits behind the tokens of these indices, (len(wanted), V) float32.
        """
        M, W = len(token_ids), len(wanted)
        logits = torch.empty(W, self._vocab_size)
        tokens = _Tokens(
            M, (c_int64 * M)(*token_ids), (c_int64 * M)(*slots), (c_int64 * M)(*positions),
            W, (c_int64 * W)(*wanted), logits.data_ptr(),
        )  # fmt: skip
        self._forward(self._address, ctypes.byref(tokens), c_int64(torch.get_num_threads()))
        return logits

    def _layer(self, block: Block, cache: KVCache) -> _Layer:
        attention, mlp = block.self_attn, block.mlp
        return _Layer(
            qkv=self._matrix(attention.qkv_proj), out=self._matrix(attention.o_proj),
            gate_up=self._matrix(mlp.gate_up_proj), down=self._matrix(mlp.down_proj),
            input_norm=self._pointer(block.input_layernorm.weight),
            post_norm=self._pointer(block.post_attention_layernorm.weight),
            q_norm=self._pointer(getattr(attention.q_norm, "weight", None)),
            k_norm=self._pointer(getattr(attention.k_norm, "weight", None)),
            keys=self._pointer(cache.keys[attention.layer]),
            values=self._pointer(cache.values[attention.layer]),
        )  # fmt: skip

    def _matrix(self, layer: Any) -> _Matrix:
        if isinstance(layer, Tensor):
            return _Matrix(0, *layer.shape, self._pointer(layer))
        if isinstance(layer, QuantizedLinear):
            codes, scale, zero = layer.codes, layer.scale, layer.zero
        else:
            codes, scale, zero = layer.weight, None, None
        bias = None if layer.bias is None else layer.bias.float()
        return _Matrix(
            _KINDS[getattr(layer, "weights", "float")], layer.out_features, layer.in_features,
            *(self._pointer(tensor) for tensor in (codes, scale, zero, bias)),
        )  # fmt: skip

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous() and tensor.device.type == "cpu"
        self._kept.append(tensor)
        return tensor.data_ptr()


class Chooser:
    """Draws the next tokens of some rows (`sampling.sample` is the same in torch).

    Args:
        samplings: the rows' settings.
        library: `library()`.
    """

    def __init__(self, samplings: Sequence[Sampling], library: ctypes.CDLL) -> None:
        self._choose = library.cygnet_sample
        self._choices = (_Choice * len(samplings))(
            *(_Choice(s.temperature, s.top_p, s.min_p, 0.0, s.top_k) for s in samplings)
        )

    def __call__(self, logits_RV: Tensor, draws_R: Sequence[float]) -> list[int]:
        """Return a token for each row of float32 logits; the draws are uniform in [0, 1).

        Raises:
            UserError: the logits of a row are no distribution.
        """
        assert logits_RV.stride(1) == 1
        R, V = logits_RV.shape
        for choice, draw in zip(self._choices, draws_R, strict=True):
            choice.draw = draw
        tokens = (c_int64 * R)()
        self._choose(
            c_void_p(logits_RV.data_ptr()), c_int64(R), c_int64(V), c_int64(logits_RV.stride(0)),
            self._choices, tokens, c_int64(torch.get_num_threads()),
        )  # fmt: skip
        if -1 in tokens:
            raise UserError("the model's logits are no numbers: its weights are damaged")
        return list(tokens)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; none, with a line to the person, where it cannot be compiled."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        say("no C++ compiler here: answers come several times slower (apt install g++ mends it)")
        return None
    try:
        return ctypes.CDLL(str(compiled(compiler, "-march=native")))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().split("\n")[0]
        say(f"{compiler} cannot compile {FOLDER}: answers come several times slower ({reason})")
        return None


def compiled(compiler: str, machine: str) -> Path:
    """Compile the library for a kind of machine, or find it compiled; return its file.

    Raises:
        CalledProcessError, OSError: the compiler does not work.
    """
    # What the compiler knows of the machine and of itself: a home folder may be shared.
    known = subprocess.run(
        [compiler, machine, "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True, text=True, check=True,
    ).stdout.encode()  # fmt: skip
    texts = [path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.is_file()]
    key = hashlib.sha256(b"".join([known, *texts, " ".join(FLAGS).encode()])).hexdigest()[:16]
    folder = cache_folder()
    path = folder / f"generate-{key}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = Path(place) / path.name
        subprocess.run(
            [compiler, machine, *FLAGS, *map(str, FOLDER.glob("*.cpp")), "-o", str(made)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        made.replace(path)
    return path
