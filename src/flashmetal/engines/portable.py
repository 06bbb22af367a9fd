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

from ..gradients import Gradients, QueryRows
from ..problem import AttentionProblem
from ..request import AttentionInputs
from . import panels
from .key_value import CachedPanel, Panel, PlainKeys
from .panels import NEGLIGIBLE, Tiling
from .portable_backward import gradients
from .sequences import Sequence, compute_dtype, new_outputs, sequences


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
    forward_into(problem, inputs, out, lse)
    return out, lse


def forward_into(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor, lse: Tensor
) -> None:
    """Write o and lse, of any dtypes."""
    tiling = panels.tiling(problem)
    batch_step = panels.batch_step(problem, tiling)
    scratch = inputs.q.new_empty(0, dtype=compute_dtype(problem))
    for sequence in sequences(problem, inputs, out, lse, batch_step, tiling.few_rows):
        first, end = sequence.clear_rows(inputs.sinks)
        if first < end and sequence.q.shape[0]:
            attend(problem, sequence, inputs, (first, end), tiling, scratch)


def refuse_backward(problem: AttentionProblem) -> str | None:
    """Why there are no gradients of a call, in words, or None."""
    if problem.page_size or (problem.k_format, problem.v_format) != ("dense", "dense"):
        return "the keys of a paged or quantised cache have no backward"
    return None


def backward(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows, wanted: tuple[str, ...]
) -> Gradients:
    """The gradients of the inputs named in ``wanted``, in memory linear in the sequence.

    ``rows`` hold the results of any engine's forward. Sums are float32, or float64 for float64
    inputs. The same call gives the same bits.
    """
    if problem.dtype == torch.float64:
        # The float32 lse of a call is too coarse to restore float64 probabilities from.
        rows = rows._replace(lse=rows.lse.double())
        forward_into(problem, inputs, torch.empty_like(rows.o), rows.lse)
    return gradients(problem, inputs, rows, wanted)


def attend(
    problem: AttentionProblem,
    sequence: Sequence,
    inputs: AttentionInputs,
    span: tuple[int, int],
    tiling: Tiling,
    scratch: Tensor,
) -> None:
    """Rows [first, end) of one sequence, block by block."""
    first, end = span
    keys = sequence.cache
    if keys is None:
        # A window takes few keys at a time: converted then, they never lie there all at once.
        in_window = min(problem.window_left, problem.window_right) >= 0
        stored = sequence.k.dtype if in_window else scratch.dtype
        k, v = (panels.by_head(x, stored) for x in (sequence.k, sequence.v))
        keys = PlainKeys(k, v, scratch.dtype)
    heads = sequence.q.shape[0] * problem.heads_q
    for row in range(first, end, tiling.block_q):
        row_end = min(row + tiling.block_q, end)
        key, key_end = sequence.band.keys(row, row_end, sequence.seqlen_k)
        block_k = max(tiling.least_keys, tiling.scores // (heads * (row_end - row)))
        scratch.resize_(heads * (row_end - row) * min(block_k, key_end - key))
        q = panels.query_block(problem, sequence, (row, row_end), scratch.dtype)
        rows = None
        for panel in keys.panels(key, key_end, block_k):
            scores = panels.scores(problem, sequence, q, panel, row, scratch)
            at = row, panel.first
            keep = panels.kept_panel(problem, sequence, inputs.rng_state, scores, *at)
            rows = _accumulate(rows, scores, panel, keep, steep=sequence.slopes is not None)
        if rows is None:
            sequence.clear(slice(row, row_end), inputs.sinks)
        else:
            _write(problem, sequence, rows, inputs.sinks, row, row_end)


def _accumulate(
    rows: _Rows | None,
    scores: Tensor,
    panel: Panel | CachedPanel,
    keep: Tensor | None,
    steep: bool,
) -> _Rows:
    """Take one panel into the running softmax; ``scores`` is overwritten by its exponentials."""
    # The clamp keeps a row without a visible key finite: exp2(-inf - lowest) is 0, not NaN.
    maximum = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    if rows is not None:
        maximum = torch.maximum(maximum, rows.maximum)
    scores.sub_(maximum)
    if steep:
        # ALiBi leads through the subnormal numbers, on which a CPU takes ten times as long.
        torch.threshold_(scores, NEGLIGIBLE, -torch.inf)
    p = scores.exp2_()
    total = p.sum(-1, keepdim=True)
    if keep is not None:
        p.mul_(keep)
    if rows is None:
        return _Rows(maximum, total, panel.values(p, None))
    decay = torch.exp2(rows.maximum - maximum)
    return _Rows(
        maximum,
        total.addcmul_(rows.total, decay),
        panel.values(p, rows.o.mul_(decay)),
    )


def _write(
    problem: AttentionProblem,
    sequence: Sequence,
    rows: _Rows,
    sinks: Tensor | None,
    row: int,
    row_end: int,
) -> None:
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
    o /= total.masked_fill(hidden, 1.0).mul_(1.0 - problem.dropout_p)[..., None]
    lse = (maximum + total.log2()).mul_(math.log(2)).masked_fill_(hidden, -torch.inf)
    sequence.out[:, row:row_end].copy_(o.transpose(1, 2))
    sequence.lse[..., row:row_end].copy_(lse)
