"""Attention written a second time, one query at a time in numpy, from the semantics alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs

Array = NDArray[np.float64]


def naive_row(
    problem: AttentionProblem,
    q: Array,
    keys: Array,
    values: Array,
    position: int,
    bias: Array | None,
    slope: float | None,
    sink: float | None,
) -> tuple[Array, float]:
    """(o, lse) of one query (D,) that stands at key ``position``, over keys (Sk, D)."""
    weights, rows = ([] if sink is None else [np.exp(sink)]), []
    for j in range(len(keys)):
        score = problem.scale * float(q @ keys[j])
        if problem.softcap > 0:
            score = problem.softcap * np.tanh(score / problem.softcap)
        if bias is not None:
            score += bias[j]
        if slope is not None:
            score -= slope * abs(position - j)
        left_ok = problem.window_left == -1 or j >= position - problem.window_left
        right_ok = problem.window_right == -1 or j <= position + problem.window_right
        if left_ok and right_ok:
            weights.append(np.exp(score))
            rows.append(weights[-1] * values[j])
    if not weights:
        return np.zeros(values.shape[-1]), -np.inf
    total = sum(weights)
    return sum(rows, np.zeros(values.shape[-1])) / total, float(np.log(total))


def naive_attention(problem: AttentionProblem, inputs: AttentionInputs) -> tuple[Array, Array]:
    """(o, lse) of a whole call, in the shapes of the public functions."""
    q, k, v, bias, slopes, sinks, starts_q, starts_k, used, *_ = (
        None if x is None else x.detach().double().numpy() for x in inputs
    )
    assert q is not None
    assert k is not None
    assert v is not None
    packed = problem.layout == "varlen"
    o = np.zeros((*q.shape[:-1], problem.head_dim_v))
    lse = np.zeros(
        (problem.heads_q, len(q)) if packed else (len(q), problem.heads_q, problem.seqlen_q)
    )
    for b in range(problem.batch):
        if packed:
            assert starts_q is not None
            assert starts_k is not None
            first, end = int(starts_q[b]), int(starts_q[b + 1])
            first_k, end_k = int(starts_k[b]), int(starts_k[b + 1])
            views = q[first:end], k[first_k:end_k], v[first_k:end_k], o[first:end]
            lse_b = lse[:, first:end]
        else:
            views, lse_b = (q[b], k[b], v[b], o[b]), lse[b]
        q_b, k_b, v_b, o_b = views
        length = len(k_b) if used is None else int(used[b])
        for h in range(problem.heads_q):
            kv_head = h // (problem.heads_q // problem.heads_k)
            for i in range(len(q_b)):
                row = None
                if bias is not None:
                    row = bias[b % len(bias), h % bias.shape[1], i % bias.shape[2]]
                slope = (
                    None if slopes is None else float(np.atleast_2d(slopes)[b % _rows(slopes), h])
                )
                o_b[i, h], lse_b[h, i] = naive_row(
                    problem,
                    q_b[i, h],
                    k_b[:length, kv_head],
                    v_b[:length, kv_head],
                    i + length - len(q_b),
                    row,
                    slope,
                    None if sinks is None else float(sinks[h]),
                )
    return o, lse


def _rows(slopes: Array) -> int:
    return len(np.atleast_2d(slopes))
