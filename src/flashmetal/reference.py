"""Eager attention: the definition of correct, and the differentiable path.

It forms the whole matrix of scores, uses plain torch operations only, never reads a value back
from its device, and so runs under autograd, torch.compile and FakeTensorMode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .cache.formats import dequantise
from .packed import sequence_and_row
from .philox import kept
from .problem import AttentionProblem
from .request import AttentionInputs


def attention_reference(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    compute_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention with the scores materialised.

    By default as a careful model runs it: scores, softmax and sums in float32 (float64 for float64
    inputs), probabilities rounded to the dtype of q; o has q's dtype and lse is float32. With
    ``compute_dtype=torch.float64`` nothing is rounded and both results are float64: the oracle.

    Returns o (B, Sq, Hq, Dv) or (total_q, Hq, Dv), and lse (B, Hq, Sq) or (Hq, total_q).
    """
    keys = _keys(problem, inputs, compute_dtype)
    if problem.layout == "dense":
        return _dense(problem, keys.inputs, keys.inputs.bias, keys.lengths, compute_dtype)
    assert inputs.cu_seqlens_q is not None
    # Padding to the largest lengths keeps all shapes known without reading cu_seqlens back.
    total = inputs.q.shape[0]
    seqlen_q = min(problem.seqlen_q, total)
    padded = keys.inputs._replace(q=_pad(inputs.q, inputs.cu_seqlens_q, seqlen_q))
    bias = inputs.bias
    if bias is not None:
        bias = bias[:, :, :seqlen_q, : padded.k.shape[1]]
    o, lse = _dense(problem, padded, bias, keys.lengths, compute_dtype)
    return _unpad(o, lse, inputs.cu_seqlens_q, total)


class _Lengths(NamedTuple):
    """The real lengths in a padded batch, and which rows of k hold no key of their sequence."""

    q: int | Tensor
    k: Tensor
    unused: Tensor  # (B, Sk) bool


class _Keys(NamedTuple):
    inputs: AttentionInputs  # k (B, Sk, Hk, D) and v (B, Sk, Hk, Dv)
    lengths: _Lengths | None  # None where every row is a key


def _keys(
    problem: AttentionProblem, inputs: AttentionInputs, compute_dtype: torch.dtype | None
) -> _Keys:
    """The keys and values of any cache or layout as dense, dequantised tensors."""
    k, v = inputs.k, inputs.v
    if problem.k_format != "dense":
        k = _dequantised(k, inputs.k_scale, problem.dtype, compute_dtype)
    if problem.v_format != "dense":
        v = _dequantised(v, inputs.v_scale, problem.dtype, compute_dtype)
    table, starts, counts = inputs.block_table, inputs.cu_seqlens_k, inputs.seqused_k
    if table is not None:
        k, v = (x[table.clamp(min=0)].flatten(1, 2) for x in (k, v))
    elif starts is not None:
        counts = starts.diff() if counts is None else counts
        seqlen_k = min(problem.seqlen_k, k.shape[0])
        k, v = (_pad(x, starts, seqlen_k) for x in (k, v))
    inputs = inputs._replace(k=k, v=v)
    if table is None and counts is None and inputs.leftpad_k is None:
        return _Keys(inputs, None)
    if counts is None:
        counts = torch.full((problem.batch,), k.shape[1], dtype=torch.int32, device=k.device)
    positions = torch.arange(k.shape[1], device=k.device)
    unused = positions >= counts[:, None]
    if inputs.leftpad_k is not None:
        unused = unused | (positions < inputs.leftpad_k[:, None])
    if table is not None:
        unused = unused | (table < 0).repeat_interleave(problem.page_size, 1)
    lengths_q = problem.seqlen_q if inputs.cu_seqlens_q is None else inputs.cu_seqlens_q.diff()
    return _Keys(inputs, _Lengths(lengths_q, counts, unused))


def _dequantised(
    codes: Tensor, scale: Tensor | None, dtype: torch.dtype, compute_dtype: torch.dtype | None
) -> Tensor:
    """The values exactly, or as a careful model has them: by float32, in its dtype."""
    if compute_dtype is not None:
        return dequantise(codes, scale, compute_dtype)
    return dequantise(codes, scale, torch.promote_types(dtype, torch.float32)).to(dtype)


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
        unused = lengths.unused[:, :, None, None]
        k, v = k.masked_fill(unused, 0.0), v.masked_fill(unused, 0.0)
    by_head = (
        q.transpose(1, 2),
        k.transpose(1, 2).repeat_interleave(groups, 1),
        v.transpose(1, 2).repeat_interleave(groups, 1),
    )
    q, k, v = (x.to(internal) for x in by_head)
    s = _scores(problem, q, k, bias, inputs.alibi_slopes, lengths)
    p, lse = _softmax(s, inputs.sinks)
    if compute_dtype is None:
        p = p.to(inputs.q.dtype).to(internal)
    if problem.dropout_p:
        p = p * dropout_mask(problem, inputs.rng_state, p.shape[2:]) / (1.0 - problem.dropout_p)
    o = (p @ v).transpose(1, 2)
    if compute_dtype is None:
        return o.to(inputs.q.dtype).contiguous(), lse.float()
    return o.contiguous(), lse


def dropout_mask(
    problem: AttentionProblem, rng_state: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """Which entries of the probabilities are kept: bool (B, Hq, rows, keys), ``shape`` the last."""
    assert rng_state is not None
    heads = torch.arange(problem.batch * problem.heads_q, device=rng_state.device)
    heads = heads.view(problem.batch, problem.heads_q)
    return kept(rng_state, problem.dropout_p, heads, (0, shape[0]), (0, shape[1]))


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
        hidden = hidden | lengths.unused[:, None, None]
    return s.masked_fill(hidden, -torch.inf)


def _pad(x: Tensor, starts: Tensor, length: int) -> Tensor:
    """(total, H, D) as (B, length, H, D); rows past a sequence's end hold rows of others."""
    index = starts[:-1, None] + torch.arange(length, device=x.device)
    return x[index.clamp(max=max(x.shape[0] - 1, 0))]


def _unpad(o: Tensor, lse: Tensor, starts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Back to (total, Hq, Dv) and (Hq, total)."""
    sequence, row = sequence_and_row(starts, total)
    return o[sequence, row], lse[sequence, :, row].T.contiguous()
