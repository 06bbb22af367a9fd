"""The public functions over a group of ranks. Every rank of the group calls them alike.

A rank passes its own rows of q, k and v, those that :func:`.sharding.local_rows` names, and gets
its own rows of the result. Alignment, windows and sinks are those of the whole sequences. Gradients
of q, k and v are whole; that of a sink or slope, which every rank has a copy of, is this rank's
share, to be summed over the group with the gradients of the model's other weights.

A rank that raises or dies ends the others: their exchange with it fails with a RuntimeError as soon
as its process is gone, or after the group's timeout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ..checks import check_lengths_tensor
from ..plan import plan
from ..problem import AttentionProblem
from ..request import AttentionInputs, Request, make_request
from .groups import Group, Ranks
from .ring import Ring, RingAttention
from .sharding import Sharding, check_sharding, lengths_of
from .ulysses import ulysses_attention

METHODS = ("ring", "ulysses")
_ring = cast("Callable[..., tuple[Tensor, Tensor]]", RingAttention.apply)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    s_aux: Tensor | None = None,
    group: Group = None,
    method: str = "ring",
    sharding: str = "zigzag",
    seqlen_q: int | None = None,
    seqlen_k: int | None = None,
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """Attention of equally long sequences whose rows are spread over the ranks.

    Args:
        q: (B, this rank's rows of S_q, Hq, D), float32, float16 or bfloat16; k and v alike.
        group: a process group, a one-dimensional DeviceMesh, or None for the default group.
        method: "ring", keys and values passing from rank to rank during the computation; or
            "ulysses", rows exchanged for heads and back (DeepSpeed-Ulysses, Jacobs et al., 2023).
        sharding: which rows the ranks hold: "zigzag" or "contiguous".
        seqlen_q: S_q of the whole sequences; by default this rank's rows times the ranks. So
            seqlen_k.

    The other arguments are those of :func:`flashmetal.flash_attn_func`, and so are results and
    errors. The ring takes no ``alibi_slopes`` and no float64. For Ulysses Hq must be a multiple of
    the ranks; key heads are repeated where the ranks need more of them.

    Memory beside a rank's own rows: in the ring two shards of k and v, and two of their float32
    gradients; in Ulysses its heads of q, k, v, the output and their gradients, as large as its rows
    of them. The same call on as many ranks gives the same bits.
    """
    function = "distributed.flash_attn_func"
    options = softmax_scale, causal, window_size, softcap, impl, None
    request = make_request(function, 0.0, *options)
    inputs, ranks = AttentionInputs(q, k, v, None, alibi_slopes, s_aux), Ranks(function, group)
    _check_method(method, inputs, request, ranks)
    spread = _dense_sharding(request, inputs, ranks, sharding, (seqlen_q, seqlen_k))
    return _attention(method, inputs, Ring(ranks, spread, request, packed=False), return_lse)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    s_aux: Tensor | None = None,
    group: Group = None,
    method: str = "ring",
    sharding: str = "zigzag",
    return_lse: bool = False,
    impl: str = "auto",
) -> Any:
    """:func:`flash_attn_func` of packed sequences, each of which is spread over all ranks.

    Args:
        q: (this rank's rows of total_q, Hq, D); k and v alike.
        cu_seqlens_q: (B + 1,) int32, offsets in the whole packed batch; so cu_seqlens_k. Their
            values are read, which waits for their device: keep them on the CPU.
    """
    function = "distributed.flash_attn_varlen_func"
    options = softmax_scale, causal, window_size, softcap, impl, None
    request = make_request(function, 0.0, *options)
    ranks, offsets = Ranks(function, group), (cu_seqlens_q, cu_seqlens_k)
    inputs = AttentionInputs(q, k, v, None, alibi_slopes, s_aux, *offsets)
    inputs, request, spread = _packed(request, inputs, ranks, sharding)
    _check_method(method, inputs, request, ranks)
    return _attention(method, inputs, Ring(ranks, spread, request, packed=True), return_lse)


def _attention(method: str, inputs: AttentionInputs, ring: Ring, return_lse: bool) -> Any:
    if method == "ulysses":
        results = ulysses_attention(inputs, ring.ranks, ring.sharding, ring.request)
    else:
        results = _ring(*inputs[:3], inputs.sinks, ring)
    return results if return_lse else results[0]


def _check_method(method: str, inputs: AttentionInputs, request: Request, ranks: Ranks) -> None:
    """Raise what one method refuses and the other takes, for a call that is right otherwise."""
    function = request.function
    if method not in METHODS:
        raise ValueError(f"{function}: method must be one of {METHODS}, got {method!r}")
    problem = AttentionProblem.of(inputs, request)
    if method == "ulysses" and problem.heads_q % ranks.size:
        raise ValueError(
            f"{function}: the {problem.heads_q} query heads must be a multiple of the {ranks.size} "
            'ranks; pass method="ring", which spreads no heads'
        )
    if method == "ring" and problem.dtype == torch.float64:
        raise TypeError(
            f"{function}: q must be float32, float16 or bfloat16, got float64: the ring merges "
            'shards by a float32 log-sum-exp; pass method="ulysses"'
        )
    if method == "ring" and problem.alibi is not None:
        raise NotImplementedError(
            f"{function}: the ring takes no alibi_slopes, whose distances span shards; pass "
            'method="ulysses"'
        )


def _dense_sharding(
    request: Request,
    inputs: AttentionInputs,
    ranks: Ranks,
    kind: str,
    seqlens: tuple[int | None, int | None],
) -> Sharding:
    """Who holds what of a dense batch, after all checks of a call that one rank can make."""
    function = request.function
    check_sharding(function, kind)
    lengths: list[int] = []
    for name, x, seqlen in zip("qk", (inputs.q, inputs.k), seqlens, strict=False):
        whole = x.shape[1] * ranks.size if seqlen is None else seqlen
        expected = sum(Sharding((whole,), (whole,), ranks.size, kind).lengths((whole,), ranks.rank))
        if x.shape[1] != expected:
            raise ValueError(
                f"{function}: {name} must have {expected} of the {whole} rows on rank {ranks.rank} "
                f"of {ranks.size} ({kind}), got {x.shape[1]}; pass seqlen_{name}, and take the "
                f"rows by local_rows"
            )
        lengths.append(whole)
    _check_whole(AttentionProblem.of(inputs, request), request, (lengths[0], lengths[1]))
    return Sharding((lengths[0],), (lengths[1],), ranks.size, kind)


def _packed(
    request: Request, inputs: AttentionInputs, ranks: Ranks, kind: str
) -> tuple[AttentionInputs, Request, Sharding]:
    """A packed call with its lengths, and who holds what, after the same checks."""
    function = request.function
    check_sharding(function, kind)
    lengths_q = _checked_lengths(function, "q", inputs.cu_seqlens_q)
    lengths_k = _checked_lengths(function, "k", inputs.cu_seqlens_k)
    longest = max(lengths_q, default=0), max(lengths_k, default=0)
    request = request._replace(max_seqlen_q=longest[0], max_seqlen_k=longest[1])
    device = getattr(inputs.q, "device", None)
    starts_q, starts_k = (x if x is None else x.to(device) for x in inputs[6:8])
    inputs = inputs._replace(cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)
    _check_whole(AttentionProblem.of(inputs, request), request, longest)
    spread = Sharding(lengths_q, lengths_k, ranks.size, kind)
    for side, x, lengths in (("q", inputs.q, lengths_q), ("k", inputs.k, lengths_k)):
        own = sum(spread.lengths(lengths, ranks.rank))
        if x.shape[0] != own:
            raise ValueError(
                f"{function}: {side} must have {own} of the {sum(lengths)} rows of "
                f"cu_seqlens_{side} on rank {ranks.rank} of {ranks.size} ({kind}), got "
                f"{x.shape[0]}; take the rows by local_rows"
            )
    return inputs, request, spread


def _checked_lengths(function: str, side: str, offsets: object) -> tuple[int, ...]:
    name = f"cu_seqlens_{side}"
    if not isinstance(offsets, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(offsets).__name__}")
    fact = offsets.shape, offsets.dtype, offsets.device, False
    check_lengths_tensor(function, name, fact, "(batch + 1,)")
    if not offsets.numel():
        raise ValueError(f"{function}: {name} must hold batch + 1 offsets, got none")
    lengths = lengths_of(offsets)
    if int(offsets[0]) != 0 or min(lengths, default=0) < 0:
        raise ValueError(f"{function}: {name} must ascend from 0, got {offsets.tolist()}")
    return lengths


def _check_whole(problem: AttentionProblem, request: Request, seqlens: tuple[int, int]) -> None:
    """Refuse on every rank alike what an engine asked for refuses of the whole call."""
    left, right = request.window_left, 0 if request.causal else request.window_right
    whole = problem._replace(
        seqlen_q=seqlens[0],
        seqlen_k=seqlens[1],
        window_left=left if left < seqlens[1] - 1 else -1,
        window_right=right if right < seqlens[0] - 1 else -1,
    )
    plan(whole, request.impl)
