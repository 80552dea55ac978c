"""The Qwen3 decoder: pre-norm RMSNorm, rotary positions, grouped queries, QK-norm, SwiGLU.

Source: Qwen3 Technical Report (Yang et al. 2025). Parameter names are those of
`Qwen3ForCausalLM` in transformers, so that the state dict is the Hugging Face state dict. Qwen2
(biases, no QK-norm) and Llama (neither) differ in the attention alone.

Shapes: B rows, T tokens, D hidden width, N query heads, K key/value heads, H head width,
F feed-forward width, V vocabulary.

Weights are kept in float32 for training and cast to the type of the activations where they are
used: the type of the hidden state is the type of the computation. Norms, rotations and softmax
run in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cygnet.config import ModelConfig
from cygnet.model.attention import attention
from cygnet.model.kv_cache import CacheView
from cygnet.model.rope import apply_rope, rope_angles, rope_frequencies, rope_score_scale


class Linear(nn.Linear):
    """A linear layer, by default without bias, that computes in the type of its input."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def _joined(parts: Sequence[Linear]) -> Linear:
    """Return one layer whose output is that of all parts, one behind the other."""
    with torch.device("meta"):
        joined = Linear(parts[0].in_features, sum(part.out_features for part in parts))
    joined.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]))
    if parts[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]))
    return joined


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x / rms(x) * weight; computed in float32, returned in the type of x."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention, in Qwen3 with normed queries and keys."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        D, H = config.hidden_size, config.head_size
        self.layer = layer
        self.head_size = H
        self.q_proj = Linear(D, config.num_heads * H, config.qkv_bias)
        self.k_proj = Linear(D, config.num_kv_heads * H, config.qkv_bias)
        self.v_proj = Linear(D, config.num_kv_heads * H, config.qkv_bias)
        self.o_proj = Linear(config.num_heads * H, D)
        self.widths = [config.num_heads * H, config.num_kv_heads * H, config.num_kv_heads * H]
        self.qkv_proj: nn.Module | None = None
        if config.qk_norm:
            self.q_norm: nn.Module = RMSNorm(H, config.rms_norm_eps)
            self.k_norm: nn.Module = RMSNorm(H, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = nn.Identity()
        self.score_scale = rope_score_scale(config)

    def forward(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        document_ids_BT: Tensor | None,
        cache: CacheView | None,
    ) -> Tensor:
        """Return (B, T, D)."""
        B, T, _ = x_BTD.shape
        heads = (B, T, -1, self.head_size)
        q, k, v = self._project(x_BTD)
        q_BNTH = self.q_norm(q.view(heads)).transpose(1, 2)
        k_BKTH = self.k_norm(k.view(heads)).transpose(1, 2)
        v_BKTH = v.view(heads).transpose(1, 2)
        q_BNTH = apply_rope(q_BNTH, *angles)
        if self.score_scale != 1:
            q_BNTH = q_BNTH * self.score_scale
        k_BKTH = apply_rope(k_BKTH, *angles)
        if cache is None:
            out_BNTH = attention(q_BNTH, k_BKTH, v_BKTH, document_ids_BT)
        else:
            out_BNTH = cache.attend(self.layer, q_BNTH, k_BKTH, v_BKTH)
        return self.o_proj(out_BNTH.transpose(1, 2).reshape(B, T, -1))

    def join(self) -> None:
        """See `Transformer.join_matrices`."""
        self.qkv_proj = _joined([self.q_proj, self.k_proj, self.v_proj])
        del self.q_proj, self.k_proj, self.v_proj

    def _project(self, x_BTD: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values, each (B, T, heads * H)."""
        if self.qkv_proj is not None:
            return self.qkv_proj(x_BTD).split(self.widths, dim=-1)
        return self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)
        self.gate_up_proj: nn.Module | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return (B, T, D)."""
        gate, up = self._project(x_BTD)
        return self.down_proj(F.silu(gate) * up)

    def join(self) -> None:
        """See `Transformer.join_matrices`."""
        self.gate_up_proj = _joined([self.gate_proj, self.up_proj])
        del self.gate_proj, self.up_proj

    def _project(self, x_BTD: Tensor) -> Sequence[Tensor]:
        """Return gate and up, each (B, T, F)."""
        if self.gate_up_proj is not None:
            return self.gate_up_proj(x_BTD).chunk(2, dim=-1)
        return self.gate_proj(x_BTD), self.up_proj(x_BTD)


class Block(nn.Module):
    """One layer: attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_BTD: Tensor,
        angles: tuple[Tensor, Tensor],
        document_ids_BT: Tensor | None = None,
        cache: CacheView | None = None,
    ) -> Tensor:
        """Return (B, T, D)."""
        normed = self.input_layernorm(x_BTD)
        x_BTD = x_BTD + self.self_attn(normed, angles, document_ids_BT, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Embeddings, blocks and final norm (`model.` in the names of transformers)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # Not drawn here: `initialize` does, and a draw on the meta device loads torch's compiler.
        embeddings = torch.zeros(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(embeddings, freeze=False)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A whole language model.

    Attributes:
        config: its sizes.
        compute_dtype: the type of the activations; weights are cast to it where they are used.
    """

    def __init__(self, config: ModelConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.model = Decoder(config)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.inverse_frequencies = nn.Buffer(rope_frequencies(config), persistent=False)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: Mapping[str, Tensor], compute_dtype: torch.dtype
    ) -> Self:
        """Build a model around the tensors of a state dict, which are not copied.

        Matrices may be in the compute dtype already, which spares casting them at every use.
        """
        with torch.device("meta"):
            model = cls(config, compute_dtype)
        model.take_weights(weights)
        return model

    def take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Let a model on the meta device have the tensors of a state dict, which are not copied."""
        self.load_state_dict(weights, assign=True)
        frequencies = self.inverse_frequencies.to(self.output_weight.device)
        self.inverse_frequencies = nn.Buffer(frequencies, persistent=False)

    @property
    def output_weight(self) -> Tensor:
        """The (V, D) matrix that maps hidden states to logits."""
        if self.config.tie_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    def join_matrices(self) -> None:
        """Join queries, keys and values into one matrix, and gate and up into another.

        Few large products read memory faster than many small ones. For inference alone: the state
        dict has other names then.
        """
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                module.join()

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw the weights: embeddings N(0, 0.02), matrices N(0, 1 / sqrt(fan-in)) truncated at
        three deviations, biases zero, and the last matrix of each residual branch zero, so that
        every block begins as the identity (Zhang et al. 2019, Fixup; Yang et al. 2022, muP)."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                parameter.zero_()
            elif name.endswith("embed_tokens.weight"):
                parameter.normal_(0.0, 0.02, generator=generator)
            elif parameter.ndim == 2:
                std = 1 / math.sqrt(parameter.shape[1])
                nn.init.trunc_normal_(parameter, 0, std, -3 * std, 3 * std, generator=generator)
            else:
                parameter.fill_(1.0)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        document_ids_BT: Tensor | None = None,
        cache: CacheView | None = None,
    ) -> Tensor:
        """Return the final hidden states (B, T, D) in the compute dtype.

        Args:
            tokens_BT: (B, T) int64.
            positions_BT: (B, T) position numbers; left out, they count from zero.
            document_ids_BT: (B, T) documents of a packed row; attention stays within each.
            cache: where the tokens stand, with the keys and values of earlier ones.
        """
        if cache is not None:
            positions_BT = cache.positions
        elif positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        angles = rope_angles(positions_BT, self.inverse_frequencies)
        x_BTD = self.model.embed_tokens(tokens_BT).to(self.compute_dtype)
        for block in self.model.layers:
            x_BTD = block(x_BTD, angles, document_ids_BT, cache)
        return self.model.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., D) to logits (..., V), float32."""
        return F.linear(hidden, self.output_weight.to(hidden.dtype)).float()
