"""The gradients of a call tile by tile in torch operations, memory linear in the sequence.

The method is FlashAttention's (Dao et al., 2022, algorithm 4): the probabilities of a panel come
back from the scores and the forward's log-sum-exp, and each panel adds its part to dQ, dK and dV.
With P the probabilities before dropout, Z the dropout's factors and delta = rowsum(o * do) - dlse::

    dV = (P * Z)^T dO        dS = P * (dO V^T * Z - delta)        dQ = dS K        dK = dS^T Q

dS is the gradient of the bias as it is; the softcap's factor 1 - tanh^2 comes after.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..gradients import Gradients, QueryRows, sink_gradient
from ..problem import AttentionProblem
from ..request import AttentionInputs
from . import panels
from .key_value import Panel, PlainKeys, product
from .sequences import Sequence, compute_dtype, sequences

_LOG2_E = math.log2(math.e)


class RowTerms(NamedTuple):
    """What the forward left of each row, and what arrives at it; float32, hidden rows neutral."""

    lse: Tensor  # log2 units; +inf where a row saw no key, so that its probabilities are 0
    delta: Tensor


class _Block(NamedTuple):
    """A block of queries from ``row`` on, all (N * Hk, G * rows, ...) in the dtype of sums."""

    row: int
    q: Tensor  # scaled
    grad_o: Tensor
    lse: Tensor  # (..., 1), as delta
    delta: Tensor
    grad_q: Tensor  # summed over the panels


class _Sums(NamedTuple):
    """Gradients of the keys and values of one sequence, while they are summed: (N * Hk, Sk, D)."""

    k: Tensor
    v: Tensor


def gradients(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows, wanted: tuple[str, ...]
) -> Gradients:
    """The gradients of the inputs named in ``wanted``."""
    terms = row_terms(problem, rows)
    found = _new_gradients(problem, inputs, wanted)
    held = {name: x for name, x in found._asdict().items() if x is not None and name != "sinks"}
    places = inputs._replace(**{"bias": None, "alibi_slopes": None, **held})
    tiling = panels.tiling(problem)
    step = panels.batch_step(problem, tiling)
    walks = (
        sequences(problem, inputs, rows.grad_o, terms.lse, step),
        sequences(problem, places, rows.grad_o, terms.delta, step),
    )
    dtype = compute_dtype(problem)
    scratch = rows.o.new_empty(0, dtype=dtype), rows.o.new_empty(0, dtype=dtype)
    for sequence, place in zip(*walks, strict=True):
        _Walk(problem, inputs.rng_state, sequence, place, wanted, tiling, scratch).run()
    if found.sinks is not None:
        assert inputs.sinks is not None
        found.sinks.copy_(sink_gradient(inputs.sinks, rows.lse, terms.delta))
    return _finished(inputs, found)


def row_terms(problem: AttentionProblem, rows: QueryRows) -> RowTerms:
    """The rows' terms, (B, Hq, Sq) or (Hq, total_q)."""
    dtype, hidden = compute_dtype(problem), rows.lse == -torch.inf
    lse = (rows.lse.to(dtype) * _LOG2_E).masked_fill_(hidden, torch.inf)
    return RowTerms(lse, rows.delta(dtype).masked_fill(hidden, 0.0))


def _new_gradients(
    problem: AttentionProblem, inputs: AttentionInputs, wanted: tuple[str, ...]
) -> Gradients:
    """Zeros to write into: vectors and the bias in the dtype of sums."""
    sums = compute_dtype(problem)
    made: dict[str, Tensor] = {}
    for name in wanted:
        x: Tensor = getattr(inputs, name)
        dtype = x.dtype if name in ("q", "k", "v") else sums
        made[name] = torch.zeros(x.shape, dtype=dtype, device=x.device)
    return Gradients(**made)


def _finished(inputs: AttentionInputs, found: Gradients) -> Gradients:
    """In the dtypes of the inputs."""
    return Gradients(
        **{
            name: None if x is None else x.to(getattr(inputs, name).dtype)
            for name, x in found._asdict().items()
        }
    )


class _Walk(NamedTuple):
    """The backward of one sequence; ``place`` has the gradients where ``sequence`` has inputs."""

    problem: AttentionProblem
    rng_state: Tensor | None
    sequence: Sequence
    place: Sequence
    wanted: tuple[str, ...]
    tiling: panels.Tiling
    scratch: tuple[Tensor, Tensor]

    def run(self) -> None:
        """Write the rows of dQ, then dK and dV, and add to the gradients of bias and slopes."""
        sequence, place, dtype = self.sequence, self.place, self.scratch[0].dtype
        first, end = sequence.band.rows(sequence.q.shape[1], sequence.seqlen_k)
        if first == end or not sequence.q.shape[0]:
            return
        k, v = (panels.by_head(x, dtype) for x in (sequence.k, sequence.v))
        keys = PlainKeys(k, v, dtype)
        sums = _Sums(torch.zeros_like(keys.k), torch.zeros_like(keys.v))
        for row in range(first, end, self.tiling.block_q):
            self._rows((row, min(row + self.tiling.block_q, end)), keys, sums)
        # The queries that made dK were scaled by panels.query_factor, not by the scale.
        sums.k.mul_(self.problem.softcap or 1 / _LOG2_E)
        for name, total, grad in (("k", sums.k, place.k), ("v", sums.v, place.v)):
            if name in self.wanted:
                grad.copy_(total.view(len(grad), -1, *total.shape[1:]).transpose(1, 2))

    def _rows(self, rows: tuple[int, int], keys: PlainKeys, sums: _Sums) -> None:
        """One block of queries, which meets its visible keys panel by panel."""
        problem, sequence, dtype = self.problem, self.sequence, self.scratch[0].dtype
        q = panels.query_block(problem, sequence, rows, dtype)
        grad_o = panels.row_block(problem, sequence.out, rows, dtype)
        lse, delta = (
            x.lse[..., slice(*rows)].reshape(*q.shape[:2], 1) for x in (sequence, self.place)
        )
        block = _Block(rows[0], q, grad_o, lse, delta, torch.zeros_like(q))
        key, key_end = sequence.band.keys(*rows, sequence.seqlen_k)
        heads = sequence.q.shape[0] * problem.heads_q
        block_k = max(self.tiling.least_keys, self.tiling.scores // (heads * (rows[1] - rows[0])))
        for scratch in self.scratch:
            scratch.resize_(q.shape[0] * q.shape[1] * min(block_k, key_end - key))
        for panel in keys.panels(key, key_end, block_k):
            self._panel(block, panel, sums)
        if "q" in self.wanted:
            grad_q = self.place.q[:, slice(*rows)].transpose(1, 2)
            grad_q.copy_(block.grad_q.mul_(problem.scale).view(grad_q.shape))

    def _panel(self, block: _Block, panel: Panel, sums: _Sums) -> None:
        """The part of one panel of keys in all gradients."""
        problem, sequence, at = self.problem, self.sequence, (block.row, panel.first)
        keys = slice(panel.first, panel.first + panel.k.shape[1])
        p, slope = self._probabilities(block, panel)
        grad_p = product(block.grad_o, panel.v, self.scratch[1])
        kept, keep = p, panels.kept_panel(problem, sequence, self.rng_state, p, *at)
        if keep is not None:
            factors = keep.to(p.dtype).div_(1.0 - problem.dropout_p)
            kept = p * factors
            grad_p.mul_(factors)
        if "v" in self.wanted:
            sums.v[:, keys].baddbmm_(kept.mT, block.grad_o)
        grad_s = grad_p.sub_(block.delta).mul_(p)
        self._add_to_terms(grad_s, *at)
        if slope is not None:
            grad_s.mul_(slope)
        if "q" in self.wanted:
            block.grad_q.baddbmm_(grad_s, panel.k)
        if "k" in self.wanted:
            sums.k[:, keys].baddbmm_(grad_s.mT, block.q)

    def _probabilities(self, block: _Block, panel: Panel) -> tuple[Tensor, Tensor | None]:
        """The panel's probabilities, and the derivative of the softcap where there is one."""
        softcap, slope = self.problem.softcap, None
        s = product(block.q, panel.k, self.scratch[0])
        if softcap:
            s.tanh_()
            slope = (1.0 - s.square()) if set(self.wanted) & {"q", "k"} else None
            s.mul_(softcap * _LOG2_E)
        panels.add_terms(self.problem, self.sequence, s, block.row, panel.first).sub_(block.lse)
        if self.sequence.slopes is not None:
            torch.threshold_(s, panels.NEGLIGIBLE, -torch.inf)
        return s.exp2_(), slope

    def _add_to_terms(self, grad_s: Tensor, row: int, key: int) -> None:
        """Add a panel to the gradients of the slopes and the bias, summed over what it repeats."""
        grad = panels.per_head(self.problem, self.sequence, grad_s)
        if self.place.bias is not None:
            bias = panels.bias_panel(self.place.bias, row, grad.shape[2], key, grad.shape[3])
            bias += grad.sum_to_size(bias.shape)
        if self.place.slopes is not None:
            distance = panels.distances(self.sequence, row, key, grad)
            slopes = (grad * distance).sum((2, 3))
            self.place.slopes.sub_(slopes.sum_to_size(self.place.slopes.shape))
