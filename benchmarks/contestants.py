"""What flashmetal is timed against: eager attention as models write it, and torch's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashmetal.engines import portable, stock
from flashmetal.plan import plan
from flashmetal.problem import AttentionInputs, AttentionProblem

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
        found.append(Contestant("eager", partial(_eager_call, problem, padded, mask, inputs)))
    if "sdpa" in rivals and not problem.softcap and not problem.sinks:
        found.append(Contestant("sdpa", sdpa_call(problem, padded, mask)))
    return found


def own_engines(problem: AttentionProblem, inputs: AttentionInputs) -> dict[str, Call]:
    """A call for each engine of this machine that serves the problem."""
    served = [engine for engine in (portable, stock) if engine.refuse(problem) is None]
    return {
        engine.__name__.rsplit(".", 1)[-1]: partial(engine.forward, problem, inputs)
        for engine in served
    }


class Padded(NamedTuple):
    """q k v as (B, H, S, D), short sequences padded with zeros at the end."""

    q: Tensor
    k: Tensor
    v: Tensor
    lengths: list[int] | None

    def pack(self, o: Tensor) -> Tensor:
        """(B, Hq, S, D) back to (B, S, Hq, D), or packed (total, Hq, D)."""
        o = o.transpose(1, 2)
        if self.lengths is None:
            return o
        return torch.cat([entry[:length] for entry, length in zip(o, self.lengths, strict=True)])


def as_padded(problem: AttentionProblem, inputs: AttentionInputs) -> Padded:
    tensors = inputs.q, inputs.k, inputs.v
    if inputs.cu_seqlens_q is None:
        return Padded(*(x.transpose(1, 2) for x in tensors), None)
    lengths: list[int] = inputs.cu_seqlens_q.diff().tolist()
    pad = torch.nn.utils.rnn.pad_sequence
    return Padded(*(pad(x.split(lengths), True).transpose(1, 2) for x in tensors), lengths)


def additive_mask(problem: AttentionProblem, inputs: AttentionInputs) -> Tensor | None:
    """Everything that is added to the scores, materialised: (B|1, Hq|1, Sq, Sk) in q's dtype."""
    rows = torch.arange(problem.seqlen_q)[:, None] + problem.seqlen_k - problem.seqlen_q
    keys = torch.arange(problem.seqlen_k)
    mask = torch.zeros(1, 1, problem.seqlen_q, problem.seqlen_k)
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


def _eager_call(
    problem: AttentionProblem, padded: Padded, mask: Tensor | None, inputs: AttentionInputs
) -> tuple[Tensor, None]:
    return padded.pack(eager(problem, padded, mask, inputs)), None


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
