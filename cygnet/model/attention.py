"""Causal attention over packed rows, with grouped queries.

Shapes: B rows, T tokens, N query heads, K key/value heads, G = N / K, H head width, S a block of
queries, L the keys that a block may see.

On the CPU, training attention is the largest part of a step that is not a plain matrix product.
`blocked_attention` writes it as few large products, one pair for each block of queries, over the
keys up to that block's end: little is computed above the diagonal, the queries that share a key
head form one tall matrix, and torch.compile fuses mask, softmax and scaling between the products.
docs/lab-book.md has the figures against torch's own kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_TOKENS = 128


def attention(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, document_ids_BT: Tensor | None
) -> Tensor:
    """Attend causally, within each token's document where documents are given.

    Args:
        q_BNTH: queries (B, N, T, H).
        k_BKTH: keys (B, K, T, H), N a multiple of K.
        v_BKTH: values (B, K, T, H).
        document_ids_BT: (B, T) integers, equal within a document; none means one document a row.

    Returns:
        (B, N, T, H), the dtype of the queries.
    """
    on_cpu = q_BNTH.device.type == "cpu"
    attend = blocked_attention if on_cpu else fused_attention
    return attend(q_BNTH, k_BKTH, v_BKTH, document_ids_BT)


def fused_attention(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, document_ids_BT: Tensor | None
) -> Tensor:
    """Compute `attention` with torch's own kernels; the arguments and the result are the same."""
    if document_ids_BT is None:
        return F.scaled_dot_product_attention(
            q_BNTH, k_BKTH, v_BKTH, is_causal=True, enable_gqa=True
        )
    return masked_attention(q_BNTH, k_BKTH, v_BKTH, document_mask(document_ids_BT))


def document_mask(document_ids_BT: Tensor) -> Tensor:
    """Return (B, 1, T, T) bool: True where the key is of the query's document and no later."""
    same = document_ids_BT[:, None, :, None] == document_ids_BT[:, None, None, :]
    num_tokens = document_ids_BT.shape[1]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=same.device).tril()
    return same & causal


def masked_attention(q_BNTH: Tensor, k_BKLH: Tensor, v_BKLH: Tensor, mask: Tensor) -> Tensor:
    """Attend where `mask` (B, 1, T, L) is True; used for decoding from a cache."""
    B, N, T, H = q_BNTH.shape
    if T == 1:
        # Queries that share a key head stand as its T: in bf16 on the CPU up to ten times faster.
        q_BKGH = q_BNTH.reshape(B, k_BKLH.shape[1], -1, H)
        out_BKGH = F.scaled_dot_product_attention(q_BKGH, k_BKLH, v_BKLH, attn_mask=mask)
        return out_BKGH.reshape(B, N, T, H)
    return F.scaled_dot_product_attention(q_BNTH, k_BKLH, v_BKLH, attn_mask=mask, enable_gqa=True)


def blocked_attention(
    q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, document_ids_BT: Tensor | None
) -> Tensor:
    """Compute `attention` by blocks of queries; the arguments and the result are the same."""
    B, N, T, H = q_BNTH.shape
    K = k_BKTH.shape[1]
    G = N // K
    q_BKGTH = (q_BNTH * H**-0.5).view(B, K, G, T, H)
    k_BKHT = k_BKTH.transpose(-1, -2)
    position = torch.arange(T, device=q_BNTH.device)
    outputs = []
    for start in range(0, T, BLOCK_TOKENS):
        end = min(start + BLOCK_TOKENS, T)
        q_BKSH = q_BKGTH[:, :, :, start:end].reshape(B, K, G * (end - start), H)
        scores = (q_BKSH @ k_BKHT[..., :end]).view(B, K, G, end - start, end)
        allowed = position[start:end, None] >= position[:end]
        if document_ids_BT is not None:
            same = document_ids_BT[:, start:end, None] == document_ids_BT[:, None, :end]
            allowed = (allowed & same)[:, None, None]
        weights = scores.float().masked_fill(~allowed, float("-inf")).softmax(-1).to(v_BKTH.dtype)
        out_BKSH = weights.view(B, K, G * (end - start), end) @ v_BKTH[:, :, :end]
        outputs.append(out_BKSH.view(B, K, G, end - start, H))
    return torch.cat(outputs, dim=3).view(B, N, T, H)
