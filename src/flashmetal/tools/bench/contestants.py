"""What flashmetal is timed against: eager attention as models write it, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from ...engines import portable, stock
from ...plan import plan
from ...problem import AttentionProblem
from ...request import AttentionInputs

Call = Callable[[], tuple[Tensor, Tensor | None]]


class Contestant(NamedTuple):
    """``call`` returns o in the layout of q, and the lse where the contestant gives one."""

    name: str
    call: Call


def contestants(
    problem: AttentionProblem, inputs: AttentionInputs, rivals: tuple[str, ...]
) -> list[Contestant]:
    """flashmetal as planned, its other engine where that serves the call, and the rivals.

    Masks are made and sequences padded here, outside of what is timed. SDPA is left out where it
    cannot compute the call.
    """
    engines = own_engines(problem, inputs)
    chosen = plan(problem).engine
    found = [Contestant("flashmetal", engines[chosen])]
    found += [Contestant(name, call) for name, call in engines.items() if name != chosen]
    padded = as_padded(problem, inputs)
    mask = additive_mask(problem, inputs)
    if "eager" in rivals:
        found.append(Contestant("eager", eager_call(problem, padded, mask, inputs)))
    if "sdpa" in rivals and not problem.softcap and not problem.sinks:
        found.append(Contestant("sdpa", sdpa_call(problem, padded, mask)))
    return found


def own_engines(problem: AttentionProblem, inputs: AttentionInputs) -> dict[str, Call]:
    """A call for each engine of this machine that serves the problem."""
    engines = {"portable": portable, "stock": stock}
    return {
        name: partial(engine.forward, problem, inputs)
        for name, engine in engines.items()
        if engine.refuse(problem) is None
    }


class Padded(NamedTuple):
    """q k v as (B, H, S, D), short sequences padded with zeros at the end."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths: tuple[list[int], list[int]] | None  # of q and of k

    def pack(self, x: Tensor, keys: bool = False) -> Tensor:
        """(B, H, S, D) back to (B, S, H, D), or packed (total, H, D)."""
        x = x.transpose(1, 2)
        if self.lengths is None:
            return x
        lengths = self.lengths[keys]
        return torch.cat([entry[:length] for entry, length in zip(x, lengths, strict=True)])


def as_padded(problem: AttentionProblem, inputs: AttentionInputs) -> Padded:
    starts_q, starts_k = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    if starts_q is None or starts_k is None:
        q, k, v = (x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v))
        return Padded(q, k, v, None)
    lengths_q, lengths_k = _lengths(starts_q), _lengths(starts_k)
    k, v = (_pad(x, lengths_k) for x in (inputs.k, inputs.v))
    return Padded(_pad(inputs.q, lengths_q), k, v, (lengths_q, lengths_k))


def _lengths(starts: Tensor) -> list[int]:
    return [int(length) for length in starts.diff()]


def _pad(x: Tensor, lengths: list[int]) -> Tensor:
    entries = list(torch.split(x, lengths))
    return torch.nn.utils.rnn.pad_sequence(entries, batch_first=True).transpose(1, 2)


def additive_mask(problem: AttentionProblem, inputs: AttentionInputs) -> Tensor | None:
    """Everything that is added to the scores, materialised: (B|1, Hq|1, Sq, Sk) in q's dtype."""
    bounded = problem.window_left >= 0 or problem.window_right >= 0
    added = inputs.alibi_slopes, inputs.bias, inputs.cu_seqlens_k
    if not bounded and all(x is None for x in added):
        return None
    device = inputs.q.device
    rows = torch.arange(problem.seqlen_q, device=device)[:, None]
    rows = rows + problem.seqlen_k - problem.seqlen_q
    keys = torch.arange(problem.seqlen_k, device=device)
    mask = torch.zeros(1, 1, problem.seqlen_q, problem.seqlen_k, device=device)
    if problem.window_left >= 0:
        mask.masked_fill_(keys < rows - problem.window_left, -torch.inf)
    if problem.window_right >= 0:
        mask.masked_fill_(keys > rows + problem.window_right, -torch.inf)
    if inputs.alibi_slopes is not None:
        mask = mask - inputs.alibi_slopes[:, None, None] * (rows - keys).abs()
    if inputs.bias is not None:
        mask = mask + inputs.bias
    if inputs.cu_seqlens_k is not None:
        lengths = inputs.cu_seqlens_k.diff()[:, None, None, None]
        mask = mask.masked_fill(keys >= lengths, -torch.inf)
    return mask.to(problem.dtype) if bool((mask != 0).any()) else None


def eager(
    problem: AttentionProblem, padded: Padded, mask: Tensor | None, inputs: AttentionInputs
) -> Tensor:
    """Attention as the models of transformers write it, scores whole; (B, Hq, Sq, Dv)."""
    group = problem.heads_q // problem.heads_k
    k, v = (x.repeat_interleave(group, 1) if group > 1 else x for x in (padded.k, padded.v))
    scores = torch.matmul(padded.q, k.transpose(2, 3)) * problem.scale
    if problem.softcap:
        scores = torch.tanh(scores / problem.softcap) * problem.softcap
    if mask is not None:
        scores = scores + mask
    if inputs.sinks is not None:
        sinks = inputs.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], -1)
    p = torch.softmax(scores, -1, dtype=torch.float32).to(padded.q.dtype)
    return torch.matmul(p[..., : problem.seqlen_k], v)


def eager_call(
    problem: AttentionProblem, padded: Padded, mask: Tensor | None, inputs: AttentionInputs
) -> Call:
    """:func:`eager` in the layout of q."""
    return lambda: (padded.pack(eager(problem, padded, mask, inputs)), None)


def sdpa_call(problem: AttentionProblem, padded: Padded, mask: Tensor | None) -> Call:
    """SDPA at its best: its causal flag where that means the same, else the mask made before."""
    causal = problem.window_right == 0 and problem.window_left < 0
    square = problem.seqlen_q == problem.seqlen_k and problem.layout == "dense"
    flag = causal and square and problem.alibi is None and problem.bias is None
    needless = flag or (causal and problem.seqlen_q == 1)
    kept = None if needless else mask

    def call() -> tuple[Tensor, None]:
        o = F.scaled_dot_product_attention(
            padded.q, padded.k, padded.v, kept, is_causal=flag, scale=problem.scale, enable_gqa=True
        )
        return padded.pack(o), None

    return call


def flex_call(problem: AttentionProblem, padded: Padded, inputs: AttentionInputs) -> Call:
    """flex_attention, compiled, with a block mask made before; it has no sinks."""
    left, right = problem.window_left, problem.window_right
    shift, cap, slopes = problem.seqlen_k - problem.seqlen_q, problem.softcap, inputs.alibi_slopes
    lengths = None if inputs.cu_seqlens_k is None else inputs.cu_seqlens_k.diff()

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        del head
        seen = key >= 0
        if left >= 0:
            seen = seen & (key >= row + shift - left)
        if right >= 0:
            seen = seen & (key <= row + shift + right)
        return seen if lengths is None else seen & (key < lengths[batch])

    def score(value: Tensor, batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        del batch
        if cap:
            value = torch.tanh(value / cap) * cap
        return value if slopes is None else value - slopes[head] * (row + shift - key).abs()

    hides = left >= 0 or right >= 0 or lengths is not None
    batch = None if lengths is None else problem.batch
    sizes = problem.seqlen_q, problem.seqlen_k, inputs.q.device
    mask = create_block_mask(visible, batch, None, *sizes) if hides else None
    score_mod = score if cap or slopes is not None else None
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def call() -> tuple[Tensor, None]:
        o = compiled(
            padded.q,
            padded.k,
            padded.v,
            score_mod,
            mask,
            scale=problem.scale,
            enable_gqa=problem.heads_q != problem.heads_k,
        )
        return padded.pack(o), None

    return call
