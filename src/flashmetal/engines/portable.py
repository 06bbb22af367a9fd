"""The whole contract in torch operations, tile by tile: CPU, and any device without a kernel.

The method is the online softmax of FlashAttention (Dao et al., 2022): a block of queries meets its
visible keys panel by panel, and only one panel of scores exists at a time. Scores are kept in
log2 units, because exp2 costs half of exp on a CPU; log2(e) is folded into factors that are there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionInputs, AttentionProblem
from .key_value import PlainKeys
from .sequences import Sequence, compute_dtype, new_outputs, sequences


class _Tiling(NamedTuple):
    block_q: int
    scores: int  # the most elements a panel of scores holds, all heads together
    least_keys: int = 256  # but a panel is at least so wide


# On a CPU a panel stays in the last-level cache, and a narrow window wants narrow blocks, which
# waste less of their corners; a GPU wants few, large launches.
_CPU_TILING = _Tiling(block_q=256, scores=1 << 21)
_CPU_WINDOW_TILING = _Tiling(block_q=128, scores=1 << 21)
_GPU_TILING = _Tiling(block_q=512, scores=1 << 25)


# In log2 units: beside a probability of 1, 2^-100 is nothing; times a value it is still normal.
_NEGLIGIBLE = -100.0


class _Rows(NamedTuple):
    """The running softmax of one block of queries, all (N * Hk, G * block_q, ...)."""

    maximum: Tensor  # (..., 1), log2 units, finite even where no key was visible
    total: Tensor  # (..., 1)
    o: Tensor  # (..., Dv), not yet divided by total


def refuse(problem: AttentionProblem) -> str | None:
    """Nothing is refused: every problem that validates is served."""
    del problem
    return None


def forward(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in memory linear in the sequence.

    Returns o (B, Sq, Hq, Dv) or (total_q, Hq, Dv) in q's dtype, written into ``out`` where given,
    and lse in fp32 (B, Hq, Sq) or (Hq, total_q). Sums are fp32, or float64 for float64 inputs.
    """
    out, lse = new_outputs(problem, inputs, out)
    tiling = _tiling(problem)
    batch_step = _batch_step(problem, tiling)
    scratch = inputs.q.new_empty(0, dtype=compute_dtype(problem))
    for sequence in sequences(problem, inputs, out, lse, batch_step):
        first, end = sequence.clear_rows(inputs.sinks)
        if first < end and sequence.q.shape[0]:
            _attend(problem, sequence, inputs.sinks, first, end, tiling, scratch)
    return out, lse


def _tiling(problem: AttentionProblem) -> _Tiling:
    if problem.device != "cpu":
        return _GPU_TILING
    left, right = problem.window_left, problem.window_right
    narrow = min(left, right) >= 0 and left + right < 2 * _CPU_TILING.block_q
    return _CPU_WINDOW_TILING if narrow else _CPU_TILING


def _batch_step(problem: AttentionProblem, tiling: _Tiling) -> int:
    """How many short batch entries share a panel; more than one costs a copy of their k and v."""
    scores = problem.heads_q * problem.seqlen_q * problem.seqlen_k
    copied = problem.heads_k * problem.seqlen_k * max(problem.head_dim, problem.head_dim_v)
    return max(1, min(problem.batch, tiling.scores // max(1, scores, copied)))


def _attend(
    problem: AttentionProblem,
    sequence: Sequence,
    sinks: Tensor | None,
    first: int,
    end: int,
    tiling: _Tiling,
    scratch: Tensor,
) -> None:
    """Rows [first, end) of one sequence, block by block."""
    keys = sequence.cache
    if keys is None:
        keys = PlainKeys(_by_head(sequence.k, scratch.dtype), _by_head(sequence.v, scratch.dtype))
    heads = sequence.q.shape[0] * problem.heads_q
    for row in range(first, end, tiling.block_q):
        row_end = min(row + tiling.block_q, end)
        key, key_end = sequence.band.keys(row, row_end, sequence.seqlen_k)
        block_k = max(tiling.least_keys, tiling.scores // (heads * (row_end - row)))
        scratch.resize_(heads * (row_end - row) * min(block_k, key_end - key))
        q = _query_block(problem, sequence, row, row_end, scratch.dtype)
        rows = None
        for panel in keys.panels(key, key_end, block_k):
            scores = _scores(problem, sequence, q, panel.k, row, panel.first, scratch)
            rows = _accumulate(rows, scores, panel.v, steep=sequence.slopes is not None)
        if rows is None:
            sequence.clear(slice(row, row_end), sinks)
        else:
            _write(sequence, rows, sinks, row, row_end)


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, S, H, D) as (N * H, S, D): a view for one entry of the compute dtype."""
    x = x.transpose(1, 2).to(dtype)
    return x.reshape(-1, *x.shape[2:])


def _query_block(
    problem: AttentionProblem, sequence: Sequence, row: int, row_end: int, dtype: torch.dtype
) -> Tensor:
    """(N * Hk, G * rows, D), scaled: the queries of a kv head side by side, so that GQA is free."""
    block = sequence.q[:, row:row_end].transpose(1, 2)
    q = torch.empty(block.shape, dtype=dtype, device=block.device).copy_(block)
    q *= problem.scale / problem.softcap if problem.softcap else problem.scale * math.log2(math.e)
    return q.view(-1, problem.heads_q // problem.heads_k * (row_end - row), problem.head_dim)


def _scores(
    problem: AttentionProblem,
    sequence: Sequence,
    q: Tensor,
    k: Tensor,
    row: int,
    key: int,
    scratch: Tensor,
) -> Tensor:
    """The panel of scores (N * Hk, G * rows, keys) in log2 units, hidden keys at -inf."""
    shape = (*q.shape[:2], k.shape[1])
    scores = scratch[: math.prod(shape)].view(shape)
    torch.bmm(q, k.transpose(1, 2), out=scores)
    if problem.softcap:
        scores.tanh_().mul_(problem.softcap * math.log2(math.e))
    batch = sequence.q.shape[0]
    by_head = scores.view(batch, problem.heads_q, -1, shape[2])
    rows, keys = by_head.shape[2:]
    if sequence.bias is not None:
        bias = sequence.bias[..., key : key + keys]
        bias = bias if bias.shape[2] == 1 else bias[:, :, row : row + rows]
        by_head.add_(bias, alpha=math.log2(math.e))
    if sequence.slopes is not None:
        distance = _distance(row + sequence.band.diagonal, key, rows, keys, scores)
        by_head.addcmul_(distance, sequence.slopes[..., None, None], value=-math.log2(math.e))
    sequence.band.hide(by_head.view(-1, rows, keys), row, key)
    return scores


def _distance(row: int, key: int, rows: int, keys: int, like: Tensor) -> Tensor:
    """|i - j| for i from ``row`` and j from ``key``, (rows, keys)."""
    i = torch.arange(row, row + rows, dtype=like.dtype, device=like.device)
    j = torch.arange(key, key + keys, dtype=like.dtype, device=like.device)
    return (i[:, None] - j).abs_()


def _accumulate(rows: _Rows | None, scores: Tensor, v: Tensor, steep: bool) -> _Rows:
    """Take one panel into the running softmax; ``scores`` is overwritten by its exponentials."""
    # The clamp keeps a row without a visible key finite: exp2(-inf - lowest) is 0, not NaN.
    maximum = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    if rows is not None:
        maximum = torch.maximum(maximum, rows.maximum)
    scores.sub_(maximum)
    if steep:
        # ALiBi leads through the subnormal numbers, on which a CPU takes ten times as long.
        torch.threshold_(scores, _NEGLIGIBLE, -torch.inf)
    p = scores.exp2_()
    total = p.sum(-1, keepdim=True)
    if rows is None:
        return _Rows(maximum, total, torch.bmm(p, v))
    decay = torch.exp2(rows.maximum - maximum)
    return _Rows(
        maximum,
        total.addcmul_(rows.total, decay),
        rows.o.mul_(decay).baddbmm_(p, v),
    )


def _write(sequence: Sequence, rows: _Rows, sinks: Tensor | None, row: int, row_end: int) -> None:
    """Divide by the row sums, the sink among them, and write o and lse of [row, row_end)."""
    batch, _, heads, _ = sequence.q.shape
    o = rows.o.view(batch, heads, row_end - row, -1)
    maximum = rows.maximum.view(o.shape[:3])
    total = rows.total.view(o.shape[:3])
    if sinks is not None:
        sink = sinks[:, None].to(total.dtype) * math.log2(math.e)
        raised = torch.maximum(maximum, sink)
        shrink = torch.exp2(maximum - raised)
        total = total * shrink + torch.exp2(sink - raised)
        maximum = raised
        o *= shrink[..., None]
    # A row that a bias hides has o = 0 already, and 0 / 1 stays 0.
    hidden = total == 0
    o /= total.masked_fill(hidden, 1.0)[..., None]
    lse = (maximum + total.log2()).mul_(math.log(2)).masked_fill_(hidden, -torch.inf)
    sequence.out[:, row:row_end].copy_(o.transpose(1, 2))
    sequence.lse[..., row:row_end].copy_(lse)
