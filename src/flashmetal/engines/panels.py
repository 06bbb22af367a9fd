"""Blocks of queries and panels of scores: what the portable forward and backward share."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..philox import kept
from ..problem import AttentionProblem
from .key_value import CachedPanel, Panel
from .sequences import Sequence


class Tiling(NamedTuple):
    block_q: int
    scores: int  # the most elements a panel of scores holds, all heads together
    least_keys: int = 256  # but a panel is at least so wide
    few_rows: int = 16  # sequences of so few queries share a panel with others


# On a CPU a panel stays in the last-level cache, and a narrow window wants narrow blocks, which
# waste less of their corners; a GPU wants few, large launches.
_CPU_TILING = Tiling(block_q=256, scores=1 << 21)
_CPU_WINDOW_TILING = Tiling(block_q=128, scores=1 << 21)
_GPU_TILING = Tiling(block_q=512, scores=1 << 25)

_LOG2_E = math.log2(math.e)
# In log2 units: beside a probability of 1, 2^-100 is nothing; times a value it is still normal.
NEGLIGIBLE = -100.0


def tiling(problem: AttentionProblem) -> Tiling:
    """How the calls of this problem are cut."""
    if problem.device != "cpu":
        return _GPU_TILING
    left, right = problem.window_left, problem.window_right
    narrow = min(left, right) >= 0 and left + right < 2 * _CPU_TILING.block_q
    return _CPU_WINDOW_TILING if narrow else _CPU_TILING


def batch_step(problem: AttentionProblem, tiling: Tiling) -> int:
    """How many short batch entries share a panel; more than one costs a copy of their k and v."""
    scores = problem.heads_q * problem.seqlen_q * problem.seqlen_k
    copied = problem.heads_k * problem.seqlen_k * max(problem.head_dim, problem.head_dim_v)
    return max(1, min(problem.batch, tiling.scores // max(1, scores, copied)))


def by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, S, H, D) as (N * H, S, D): a view for one entry of the compute dtype."""
    x = x.transpose(1, 2).to(dtype)
    return x.reshape(-1, *x.shape[2:])


def query_block(
    problem: AttentionProblem, sequence: Sequence, rows: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """(N * Hk, G * rows, D), scaled: the queries of a kv head side by side, so that GQA is free."""
    return row_block(problem, sequence.q, rows, dtype).mul_(query_factor(problem))


def query_factor(problem: AttentionProblem) -> float:
    """What q is multiplied by: a score leaves the product in log2 units, or in those of its cap."""
    return problem.scale / problem.softcap if problem.softcap else problem.scale * _LOG2_E


def row_block(
    problem: AttentionProblem, x: Tensor, rows: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """A copy of rows of x (N, Sq, Hq, D), all heads of a kv head: (N * Hk, G * rows, D)."""
    block = x[:, rows[0] : rows[1]].transpose(1, 2)
    copy = torch.empty(block.shape, dtype=dtype, device=block.device).copy_(block)
    groups = problem.heads_q // problem.heads_k
    return copy.view(-1, groups * (rows[1] - rows[0]), x.shape[3])


def scores(
    problem: AttentionProblem,
    sequence: Sequence,
    q: Tensor,
    panel: Panel | CachedPanel,
    row: int,
    scratch: Tensor,
) -> Tensor:
    """The panel of scores (N * Hk, G * rows, keys) in log2 units, hidden keys at -inf."""
    s = panel.scores(q, scratch)
    if problem.softcap:
        s.tanh_().mul_(problem.softcap * _LOG2_E)
    absent = panel.absent
    if absent is not None:
        s.view(absent.shape[0], -1, s.shape[2]).masked_fill_(absent[:, None], -torch.inf)
    return add_terms(problem, sequence, s, row, panel.first)


def add_terms(
    problem: AttentionProblem, sequence: Sequence, scores: Tensor, row: int, key: int
) -> Tensor:
    """Bias, ALiBi and the mask, added in place to a panel that starts at (row, key)."""
    heads = per_head(problem, sequence, scores)
    rows, keys = heads.shape[2:]
    if sequence.bias is not None:
        heads.add_(bias_panel(sequence.bias, row, rows, key, keys), alpha=_LOG2_E)
    if sequence.slopes is not None:
        distance = distances(sequence, row, key, heads)
        heads.addcmul_(distance, sequence.slopes[..., None, None], value=-_LOG2_E)
    sequence.band.hide(heads.view(-1, rows, keys), row, key)
    return scores


def per_head(problem: AttentionProblem, sequence: Sequence, panel: Tensor) -> Tensor:
    """(N * Hk, G * rows, keys) seen as (N, Hq, rows, keys)."""
    return panel.view(sequence.q.shape[0], problem.heads_q, -1, panel.shape[2])


def bias_panel(bias: Tensor, row: int, rows: int, key: int, keys: int) -> Tensor:
    """The part of a bias (N|1, Hq|1, Sq|1, Sk) that a panel at (row, key) takes."""
    bias = bias[..., key : key + keys]
    return bias if bias.shape[2] == 1 else bias[:, :, row : row + rows]


def distances(sequence: Sequence, row: int, key: int, like: Tensor) -> Tensor:
    """|i - j|, (rows, keys), of the keys of a panel at (row, key) from the queries' positions."""
    rows, keys = like.shape[2:]
    row += sequence.band.diagonal
    i = torch.arange(row, row + rows, dtype=like.dtype, device=like.device)
    j = torch.arange(key, key + keys, dtype=like.dtype, device=like.device)
    return (i[:, None] - j).abs_()


def kept_panel(
    problem: AttentionProblem,
    sequence: Sequence,
    rng_state: Tensor | None,
    panel: Tensor,
    row: int,
    key: int,
) -> Tensor | None:
    """Which entries of a panel at (row, key) dropout keeps, in the panel's shape; None: all."""
    if not problem.dropout_p:
        return None
    assert rng_state is not None
    rows, keys = per_head(problem, sequence, panel).shape[2:]
    first = sequence.entry * problem.heads_q
    heads = torch.arange(first, first + sequence.q.shape[0] * problem.heads_q, device=panel.device)
    mask = kept(rng_state, problem.dropout_p, heads, (row, row + rows), (key, key + keys))
    return mask.view(panel.shape)
