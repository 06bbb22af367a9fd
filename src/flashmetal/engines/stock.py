"""Torch's own fused kernels, where they give the contract's answer: on CPUs here.

What the kernel does otherwise is kept from it: it dies on an empty key sequence, reads a last
stride other than 1 wrongly, aligns causal to the top left, where a scale that is not positive makes
NaN, and gives a row without a visible key lse 0. Rows of that last kind are the first ones of a
causal call and never reach it. Of a paged cache it reads neighbouring pages, and copies of few
keys; the other sequences go panel by panel.

Half types are served in float32: in them the kernel's exponentials put a larger error into the lse
than it is allowed (tests/engines/test_stock_hazards.py). The price is paid on CPUs with matrix
instructions for bfloat16, where the kernel's own bfloat16 is faster.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gradients import Gradients, QueryRows, sink_gradient
from ..merging import join, with_sinks
from ..problem import AttentionProblem
from ..request import AttentionInputs
from ..settled import once
from . import panels, portable, stock_cuda
from .key_value import CachedKeys
from .sequences import (
    compute_dtype,
    fits_together,
    is_positive,
    key_bounds,
    new_outputs,
    sequences,
)

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Up to so many query rows, and from so many elements of k, the time goes into reading k and v.
_DECODE_ROWS = 16
_DECODE_ELEMENTS = 1 << 19


def refuse(problem: AttentionProblem) -> str | None:
    """Why torch's fused kernel cannot serve the call, in words, or None."""
    if problem.device == "cuda":
        return stock_cuda.refuse(problem)
    reasons = (
        (problem.device != "cpu", f"torch's kernels on {problem.device} give no log-sum-exp"),
        (problem.dtype not in _DTYPES, f"torch's fused CPU kernel does not take {problem.dtype}"),
        (
            problem.k_format != "dense" or problem.v_format != "dense",
            "torch's fused CPU kernel reads no quantised cache",
        ),
        (problem.dropout_p > 0.0, "torch's fused CPU kernel has no dropout"),
        (problem.softcap != 0.0, "torch's fused CPU kernel has no softcap"),
        (problem.alibi is not None, "ALiBi would need a mask of Sq x Sk elements"),
        (problem.bias is not None, "torch's fused CPU kernel gives lse 0 where a bias hides a row"),
        (problem.window_left >= 0, "torch's fused CPU kernel would compute outside the window"),
        (problem.window_right > 0, "torch's fused CPU kernel would compute outside the window"),
        (
            problem.window_right == 0 and not is_positive(problem.scale, compute_dtype(problem)),
            "torch's fused CPU kernel multiplies hidden scores by the scale, which is not positive",
        ),
        (
            problem.head_dim != problem.head_dim_v,
            "torch's fused CPU kernel needs v to have the head dimension of q and k",
        ),
    )
    return next((reason for refused, reason in reasons if refused), None)


def prefer_stock(problem: AttentionProblem) -> tuple[bool, str]:
    """Whether it is faster than the portable engine on a call it does not refuse, and why.

    The number of threads is read once a problem, since plans are kept.
    """
    if problem.device == "cuda":
        serving = stock_cuda.installed(problem) or "torch's flash attention"
        return True, f"{serving} is the fastest on CUDA"
    elements = problem.seqlen_k * problem.heads_k * problem.head_dim
    decode = problem.seqlen_q <= _DECODE_ROWS and elements >= _DECODE_ELEMENTS
    if decode and problem.heads_q > problem.heads_k:
        heads = problem.batch * problem.heads_k
        if problem.seqlen_q > 1:
            return False, (
                f"a decode step of grouped heads: torch's fused CPU kernel reads k and v "
                f"{problem.heads_q // problem.heads_k} times, the portable engine once"
            )
        if heads < torch.get_num_threads():
            return False, f"torch's fused CPU kernel would keep {heads} of the threads busy"
    return True, "torch's fused CPU kernel is the fastest for full and causal attention"


def forward(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention by ``aten::_scaled_dot_product_flash_attention_for_cpu``.

    Returns o (B, Sq, Hq, Dv) or (total_q, Hq, Dv) in q's dtype, written into ``out`` where given,
    and lse in fp32 (B, Hq, Sq) or (Hq, total_q).
    """
    if problem.device == "cuda":
        return stock_cuda.forward(problem, inputs, out)
    found = None
    if _is_whole(problem):
        found = _attend(problem, inputs.q, inputs.k, inputs.v, inputs.sinks)
    elif _is_padded_decode(problem):
        found = _padded_decode(problem, inputs)
    if found is not None:
        # The kernel's own output is the answer: no second one is written.
        o, lse = found[0].transpose(1, 2).to(problem.dtype), found[1].to(torch.float32)
        return (o.contiguous() if out is None else out.copy_(o)), lse
    out, lse = new_outputs(problem, inputs, out)
    scratch = inputs.q.new_empty(0, dtype=compute_dtype(problem))
    tiling = panels.tiling(problem)
    for sequence in sequences(problem, inputs, out, lse, max(1, problem.batch), tiling.few_rows):
        first, end = sequence.clear_rows(inputs.sinks)
        if first == end or not sequence.q.shape[0]:
            continue
        q = sequence.q[:, first:]
        if sequence.cache is None:
            found = _attend(problem, q, sequence.k, sequence.v, inputs.sinks)
        else:
            # Few queries each of many sequences, scattered pages, or missing ones.
            found = _attend_gathered(problem, q, sequence.cache, inputs.sinks)
        if found is None:
            portable.attend(problem, sequence, inputs, (first, end), tiling, scratch)
        else:
            sequence.out[:, first:].copy_(found[0].transpose(1, 2))
            sequence.lse[..., first:].copy_(found[1])
    return out, lse


def refuse_backward(problem: AttentionProblem) -> str | None:
    """Why torch's fused kernel cannot give the gradients of a call it serves, or None."""
    if problem.device == "cuda":
        return stock_cuda.refuse_backward(problem)
    if problem.dtype == torch.float64:
        return "torch's fused CPU kernel wants a float64 log-sum-exp, and ours is float32"
    if problem.page_size or problem.leftpad_k:
        return "torch's fused CPU kernel writes no gradients past pages or left padding"
    return None


def backward(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows, wanted: tuple[str, ...]
) -> Gradients:
    """Gradients by the backward of the same kernel; arguments are those of the portable engine."""
    if problem.device == "cuda":
        return stock_cuda.backward(problem, inputs, rows, wanted)
    if _is_whole(problem):
        found = _attend_backward(problem, inputs.q, inputs.k, inputs.v, rows)
        q, k, v = (x.to(problem.dtype).contiguous() for x in found)
    else:
        q, k, v = _sequences_backward(problem, inputs, rows)
    sinks = None
    if inputs.sinks is not None and "sinks" in wanted:
        sinks = sink_gradient(inputs.sinks, rows.lse, rows.delta())
    made = Gradients(q, k, v, sinks=sinks)
    return Gradients(*[x if name in wanted else None for name, x in made._asdict().items()])


def _sequences_backward(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, sequence by sequence; zeros where nothing is seen."""
    grads = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in inputs[:3])
    places = inputs._replace(q=grads[0], k=grads[1], v=grads[2])
    grad_lse = rows.lse if rows.grad_lse is None else rows.grad_lse
    walks = (
        sequences(problem, inputs, rows.o, rows.lse, max(1, problem.batch)),
        sequences(problem, places, rows.grad_o, grad_lse, max(1, problem.batch)),
    )
    for sequence, place in zip(*walks, strict=True):
        first, end = sequence.band.rows(sequence.q.shape[1], sequence.seqlen_k)
        if first == end or not sequence.q.shape[0]:
            continue
        part = QueryRows(
            sequence.out[:, first:],
            sequence.lse[..., first:],
            place.out[:, first:],
            None if rows.grad_lse is None else place.lse[..., first:],
        )
        found = _attend_backward(problem, sequence.q[:, first:], sequence.k, sequence.v, part)
        for grad, x in zip((place.q[:, first:], place.k, place.v), found, strict=True):
            grad.copy_(x)
    return grads[0], grads[1], grads[2]


def _is_whole(problem: AttentionProblem) -> bool:
    """Whether one call serves every row: one length, no empty dimension, no row without a key."""
    return (
        problem.layout == "dense"
        and not (problem.seqused_k or problem.page_size or problem.leftpad_k)
        and min(problem.batch, problem.seqlen_q, problem.seqlen_k) > 0
        and (problem.window_right < 0 or problem.seqlen_q <= problem.seqlen_k)
    )


def _is_padded_decode(problem: AttentionProblem) -> bool:
    """Whether one query each meets keys of uneven lengths that lie padded in a tensor."""
    return (
        problem.layout == "dense"
        and problem.seqlen_q == 1
        and not problem.page_size
        and problem.dtype == compute_dtype(problem)
        and min(problem.batch, problem.seqlen_k) > 0
    )


class _Padding(NamedTuple):
    """The keys [first, end) in which all sequences' lie, and what hides the others of each."""

    first: int
    end: int
    mask: Tensor | None  # (B, 1, 1, end - first), 0 or -inf

    @classmethod
    def of(cls, problem: AttentionProblem, inputs: AttentionInputs) -> _Padding | None:
        """None where a sequence has no key, or padding prevails."""
        firsts, ends = key_bounds(problem, inputs)
        first, end = min(firsts), max(ends)
        counts = list(map(operator.sub, ends, firsts))
        if min(counts) < 1 or not fits_together(problem.batch, end - first, sum(counts)):
            return None
        columns, mask = torch.arange(first, end, device=inputs.q.device), None
        if min(counts) < end - first:
            mask = inputs.q.new_zeros(problem.batch, end - first)
            if inputs.leftpad_k is not None:
                mask.masked_fill_(columns < inputs.leftpad_k[:, None], -torch.inf)
            if inputs.seqused_k is not None:
                mask.masked_fill_(columns >= inputs.seqused_k[:, None], -torch.inf)
            mask = mask[:, None, None]
        return cls(first, end, mask)


def _padded_decode(
    problem: AttentionProblem, inputs: AttentionInputs
) -> tuple[Tensor, Tensor] | None:
    """o (B, Hq, 1, D) and lse (B, Hq, 1) in one call of the kernel, padding masked.

    None where another way must serve, as where what lies in the padding is not finite and reached
    a result.
    """
    padding = once(inputs.lengths, (_Padding, problem), lambda: _Padding.of(problem, inputs))
    if padding is None:
        return None
    first, end, mask = padding
    k, v = inputs.k, inputs.v
    if end - first < problem.seqlen_k:
        k, v = k[:, first:end], v[:, first:end]
    o, lse = _attend(problem, inputs.q, k, v, inputs.sinks, mask)
    return (o, lse) if mask is None or math.isfinite(o.sum().item()) else None


def _attend_gathered(
    problem: AttentionProblem, q: Tensor, cache: CachedKeys, sinks: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """As :func:`_attend`, over a copy of few keys of a cache.

    None where another way must serve: keys are many, or hidden from some of several rows.
    """
    panel = cache.whole()
    if q.shape[1] > 1 and panel.absent is not None:
        return None
    found = panel.gathered()
    if found is None:
        return None
    (k, v), mask = found, panel.columns.hiding
    return _attend(problem, q, k, v, sinks, None if mask is None else mask.to(k.dtype))


def _attend(
    problem: AttentionProblem,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows that all see a key, q (N, Sq, Hq, D): o (N, Hq, Sq, D), lse (N, Hq, Sq).

    ``mask`` (N, 1, 1, Sk), for single rows, is 0, or -inf where a key is hidden.
    """
    if problem.dtype != compute_dtype(problem):
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (_unit_stride(x).transpose(1, 2) for x in (q, k, v))
    rows, keys = q.shape[2], k.shape[2]
    # A single row stands at the last key: bottom-right causal hides nothing from it.
    causal = problem.window_right == 0 and rows > 1
    if rows == 1:
        # The query heads of a kv head as rows of one head: the kernel reads k and v once.
        packed = q.reshape(k.shape[0], k.shape[1], -1, k.shape[3])
        o, lse = _fused(packed, k, v, False, problem.scale, mask)
        o, lse = o.reshape(q.shape), lse.reshape(q.shape[:3])
    elif causal and rows < keys:
        # The earlier keys are seen by every row, and the last ones form a square.
        earlier = keys - rows
        o, lse = _merge(
            _fused(q, k[:, :, :earlier], v[:, :, :earlier], False, problem.scale),
            _fused(q, k[:, :, earlier:], v[:, :, earlier:], True, problem.scale),
        )
    else:
        o, lse = _fused(q, k, v, causal, problem.scale)
    return (o, lse) if sinks is None else with_sinks(o, lse, sinks)


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _fused(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=scale
    )


def _merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys from the attention over each."""
    lse, shares = join((a[1], b[1]))
    share_a, share_b = (share[..., None].to(a[0].dtype) for share in shares)
    return (a[0] * share_a).addcmul_(b[0], share_b), lse


def _attend_backward(
    problem: AttentionProblem, q: Tensor, k: Tensor, v: Tensor, rows: QueryRows
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of rows that all see a key: float32 (N, Sq, Hq, D) and twice (N, Sk, Hk, D)."""
    tensors = [x.float() for x in (q, k, v, rows.o, rows.grad_o)]
    if rows.grad_lse is not None:
        # The kernel subtracts rowsum(o * grad_o) from dP: one more column takes grad_lse there.
        tensors = [F.pad(x, (0, 1)) for x in tensors]
        tensors[3][..., -1] = -rows.grad_lse.transpose(1, 2)
        tensors[4][..., -1] = 1.0
    q, k, v, o, grad_o = (_unit_stride(x).transpose(1, 2) for x in tensors)
    rest = o, rows.lse.contiguous(), grad_o
    count, keys = q.shape[2], k.shape[2]
    causal = problem.window_right == 0 and count > 1
    if causal and count < keys:
        earlier = keys - count
        grad_q, *first = _fused_backward(
            q, k[:, :, :earlier], v[:, :, :earlier], rest, False, problem.scale
        )
        more, *second = _fused_backward(
            q, k[:, :, earlier:], v[:, :, earlier:], rest, True, problem.scale
        )
        found = grad_q + more, *(torch.cat(x, 2) for x in zip(first, second, strict=True))
    else:
        found = _fused_backward(q, k, v, rest, causal, problem.scale)
    grads = (x.transpose(1, 2)[..., : problem.head_dim] for x in found)
    grad_q, grad_k, grad_v = grads
    return grad_q, grad_k, grad_v


def _fused_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rest: tuple[Tensor, Tensor, Tensor],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v over keys that are all or some of those in ``rest``'s lse."""
    o, lse, grad_o = rest
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_o, q, k, v, o, lse, 0.0, causal, scale=scale
    )
