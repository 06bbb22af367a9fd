"""Eager attention: the definition of correct, and the differentiable path.

It forms the whole matrix of scores, uses plain torch operations only, never reads a value back
from its device, and so runs under autograd, torch.compile and FakeTensorMode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import AttentionInputs, AttentionProblem


def attention_reference(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with the scores materialised.

    By default as a careful model runs it: scores, softmax and sums in float32 (float64 for float64
    inputs), probabilities rounded to the dtype of v; o has q's dtype and lse is float32. With
    ``compute_dtype=torch.float64`` nothing is rounded and both results are float64: the oracle.

    Returns o (B, Sq, Hq, Dv) or (total_q, Hq, Dv), and lse (B, Hq, Sq) or (Hq, total_q).
    """
    if problem.layout == "dense":
        keys = None if inputs.seqused_k is None else _Lengths(problem.seqlen_q, inputs.seqused_k)
        return _dense(problem, inputs, inputs.bias, keys, compute_dtype)
    assert inputs.cu_seqlens_q is not None
    assert inputs.cu_seqlens_k is not None
    q, k, v = inputs[:3]
    # Padding to the largest lengths keeps all shapes known without reading cu_seqlens back.
    seqlen_q, seqlen_k = min(problem.seqlen_q, q.shape[0]), min(problem.seqlen_k, k.shape[0])
    lengths_q = inputs.cu_seqlens_q.diff()
    lengths_k = inputs.cu_seqlens_k.diff() if inputs.seqused_k is None else inputs.seqused_k
    padded = inputs._replace(
        q=_pad(q, inputs.cu_seqlens_q, seqlen_q),
        k=_pad(k, inputs.cu_seqlens_k, seqlen_k),
        v=_pad(v, inputs.cu_seqlens_k, seqlen_k),
    )
    bias = inputs.bias
    if bias is not None:
        bias = bias[:, :, :seqlen_q, :seqlen_k]
    o, lse = _dense(problem, padded, bias, _Lengths(lengths_q, lengths_k), compute_dtype)
    return _unpad(o, lse, inputs.cu_seqlens_q, q.shape[0])


class _Lengths(NamedTuple):
    """The real lengths in a padded batch: an int for all, or a tensor (B,)."""

    q: int | Tensor
    k: Tensor


def _dense(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    bias: Tensor | None,
    lengths: _Lengths | None,
    compute_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    q, k, v = inputs[:3]
    internal = compute_dtype or (torch.float64 if q.dtype == torch.float64 else torch.float32)
    groups = problem.heads_q // problem.heads_k
    if lengths is not None:
        # Rows that hold no key may hold anything, and 0 * nan is not 0.
        unused = torch.arange(k.shape[1], device=k.device) >= lengths.k[:, None]
        k = k.masked_fill(unused[:, :, None, None], 0.0)
        v = v.masked_fill(unused[:, :, None, None], 0.0)
    by_head = (
        q.transpose(1, 2),
        k.transpose(1, 2).repeat_interleave(groups, 1),
        v.transpose(1, 2).repeat_interleave(groups, 1),
    )
    q, k, v = (x.to(internal) for x in by_head)
    s = _scores(problem, q, k, bias, inputs.alibi_slopes, lengths)
    p, lse = _softmax(s, inputs.sinks)
    if compute_dtype is None:
        p = p.to(inputs.v.dtype).to(internal)
    o = (p @ v).transpose(1, 2)
    if compute_dtype is None:
        return o.to(inputs.q.dtype).contiguous(), lse.float()
    return o.contiguous(), lse


def _softmax(s: Tensor, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The probabilities (B, Hq, Sq, Sk) and the lse (B, Hq, Sq), the sinks in its sum."""
    if sinks is not None:
        sink = sinks.to(s.dtype)[:, None, None].expand(*s.shape[:-1], 1)
        s = torch.cat([s, sink], -1)
    hidden = (s == -torch.inf).all(-1)  # also a row of no key at all
    # Finite scores keep nan out of the gradients of a hidden row, whose results are overwritten.
    lse = torch.logsumexp(s.masked_fill(hidden[..., None], 0.0), -1)
    p = torch.exp(s - lse[..., None])
    if sinks is not None:
        p = p[..., :-1]
    return p, lse.masked_fill(hidden, -torch.inf)


def _scores(
    problem: AttentionProblem,
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    slopes: Tensor | None,
    lengths: _Lengths | None,
) -> Tensor:
    """Scale, softcap, bias, ALiBi, mask, in this order: (B, Hq, Sq, Sk), -inf where hidden."""
    s = q @ k.mT * problem.scale
    if problem.softcap:
        s = problem.softcap * torch.tanh(s / problem.softcap)
    if bias is not None:
        s = s + bias.to(s.dtype)
    rows = torch.arange(q.shape[2], device=q.device)[:, None]
    keys = torch.arange(k.shape[2], device=q.device)
    diagonal: int | Tensor = k.shape[2] - q.shape[2]
    if lengths is not None:
        diagonal = (lengths.k - lengths.q)[:, None, None, None]
    distance = keys - (rows + diagonal)  # of a key from the query's own position
    if slopes is not None:
        slopes = slopes if slopes.ndim == 2 else slopes[None]
        s = s - slopes[:, :, None, None].to(s.dtype) * distance.abs()
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if problem.window_left >= 0:
        hidden = hidden | (distance < -problem.window_left)
    if problem.window_right >= 0:
        hidden = hidden | (distance > problem.window_right)
    if lengths is not None:
        hidden = hidden | (keys >= lengths.k[:, None, None, None])
    return s.masked_fill(hidden, -torch.inf)


def _pad(x: Tensor, starts: Tensor, length: int) -> Tensor:
    """(total, H, D) as (B, length, H, D); rows past a sequence's end hold rows of others."""
    index = starts[:-1, None] + torch.arange(length, device=x.device)
    return x[index.clamp(max=max(x.shape[0] - 1, 0))]


def _unpad(o: Tensor, lse: Tensor, starts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Back to (total, Hq, Dv) and (Hq, total)."""
    rows = torch.arange(total, device=o.device, dtype=starts.dtype)
    sequence = torch.searchsorted(starts[1:], rows, right=True)
    position = rows - starts[sequence]
    return o[sequence, position], lse[sequence, :, position].T.contiguous()
