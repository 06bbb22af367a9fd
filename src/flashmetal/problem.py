"""One attention call, described without its tensors: every error a user can make is raised here."""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .cache_formats import stored_format
from .checks import (
    Facts,
    check_extras,
    check_layout,
    check_query_key_value,
    check_request,
    row_length,
    words,
)

_forward_ad: Any = forward_ad  # its current level has no public name
_INTEGERS = (int, torch.SymInt)


class AttentionInputs(NamedTuple):
    """The tensors of one call, in the order of the operators' arguments.

    Dense: q (B, Sq, Hq, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv). Packed ("varlen"): q
    (total_q, Hq, D), k (total_k, Hk, D), v (total_k, Hk, Dv), and both ``cu_seqlens``.

    Paged, with dense or packed q: k (pages, page_size, Hk, D), v (pages, page_size, Hk, Dv) and
    ``block_table``; key j of sequence b is row j % page_size of page block_table[b, j //
    page_size]. A page of -1 is no page: its keys are hidden. Packed q then has ``seqused_k`` and no
    ``cu_seqlens_k``. A contiguous cache whose rows are picked by an index is paged too: its pages
    are as long as its rows, and the index is a table (B, 1).

    k and v may be codes of :mod:`.cache_formats`, each in its own format, beside their scales.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None  # (B|1, Hq|1, Sq|1, Sk); packed: Sq, Sk are the largest lengths
    alibi_slopes: Tensor | None = None  # (Hq,) or (B, Hq) float32
    sinks: Tensor | None = None  # (Hq,) float32, natural-log units
    cu_seqlens_q: Tensor | None = None  # (B + 1,) int32
    cu_seqlens_k: Tensor | None = None  # (B + 1,) int32
    seqused_k: Tensor | None = None  # (B,) int32, with a cache the keys after any append
    block_table: Tensor | None = None  # (B, pages of a sequence) int32
    leftpad_k: Tensor | None = None  # (B,) int32, the first keys of a sequence, which are hidden
    k_scale: Tensor | None = None  # float32, of k's format
    v_scale: Tensor | None = None  # float32, of v's format
    rng_state: Tensor | None = None  # (2,) int64, seed and offset of the dropout, see philox


class Request(NamedTuple):
    """What a public function was asked for beside its tensors, in the order of the operators."""

    function: str
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    scale: float | None = None
    causal: bool = False
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    impl: str = "auto"
    kernel: str | None = None
    validate: bool = False
    num_splits: int = 0
    dropout_p: float = 0.0


class AttentionProblem(NamedTuple):
    """A checked call in canonical form: hashable, so that plans and kernels are cached by it.

    ``seqlen_q`` and ``seqlen_k`` are the largest lengths of a packed batch. A window bound is -1
    where it hides nothing; causal is ``window_right == 0``. ``bias`` says which of (batch, head,
    query) are broadcast; ``alibi`` is "head" or "batch_head"; ``softcap`` 0 is none.

    ``page_size`` 0 is no paging; else ``seqlen_k`` is what a row of the block table can hold,
    whatever the lengths. ``k_format`` and ``v_format`` are of :mod:`.cache_formats`.
    ``num_splits`` 0 leaves the split over keys to the plan.
    """

    layout: str
    batch: int
    seqlen_q: int
    seqlen_k: int
    heads_q: int
    heads_k: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    device: str
    scale: float
    window_left: int
    window_right: int
    softcap: float
    bias: tuple[bool, bool, bool] | None
    bias_dtype: torch.dtype | None
    alibi: str | None
    sinks: bool
    seqused_k: bool
    needs_grad: bool
    page_size: int = 0
    leftpad_k: bool = False
    k_format: str = "dense"
    v_format: str = "dense"
    num_splits: int = 0
    dropout_p: float = 0.0

    @classmethod
    def of(cls, inputs: AttentionInputs, request: Request) -> AttentionProblem:
        """Describe a call, or raise ValueError, TypeError or NotImplementedError.

        The error names the public function, what it expects, what came and what to do.
        """
        tensors = cast("tuple[object, ...]", inputs)  # the types are not to be trusted yet
        facts = tuple(
            [
                None
                if x is None
                else (
                    (x.shape, x.dtype, x.device, x.requires_grad)
                    if isinstance(x, Tensor)
                    else type(x)
                )
                for x in tensors
            ]
        )
        modes = is_forward_mode(), torch.is_grad_enabled()
        if not torch.compiler.is_compiling():
            try:
                return _cached_problem(facts, request, modes)
            except TypeError:
                pass  # a wrong argument, told below, or the symbolic sizes of a traced graph
        return _problem(facts, request, modes)


def is_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return bool(_forward_ad._current_level >= 0)


_PUBLIC_NAMES = tuple(["s_aux" if x == "sinks" else x for x in AttentionInputs._fields])


def _problem(
    facts: tuple[Facts | type | None, ...], request: Request, modes: tuple[bool, bool]
) -> AttentionProblem:
    """The checked problem; ``modes`` says whether forward and reverse autograd record."""
    function = request.function
    given: dict[str, Facts] = {}
    for name, fact in zip(_PUBLIC_NAMES, facts, strict=True):
        if isinstance(fact, type):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, got {fact.__name__}")
        if fact is not None:
            given[name] = fact
        elif name in ("q", "k", "v"):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, got None")
    check_request(request)
    packed = request.max_seqlen_q is not None
    check_query_key_value(function, given, packed)
    batch, seqlen_q, seqlen_k = check_layout(given, request)
    q, k, v = given["q"], given["k"], given["v"]
    heads_q, head_dim = q[0][-2:]
    check_extras(function, given, (batch, heads_q, seqlen_q, seqlen_k), packed)
    bias, alibi = given.get("bias"), given.get("alibi_slopes")
    window_left, window_right = request.window_left, 0 if request.causal else request.window_right
    return AttentionProblem(
        layout="varlen" if packed else "dense",
        batch=batch,
        seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
        heads_q=heads_q,
        heads_k=k[0][-2],
        head_dim=head_dim,
        head_dim_v=row_length(v),
        dtype=q[1],
        device=q[2].type,
        scale=float(head_dim**-0.5 if request.scale is None else request.scale),
        # A bound that hides nothing from the last (left) or the first (right) row is no bound.
        window_left=window_left if -1 < window_left < seqlen_k - 1 else -1,
        window_right=window_right if -1 < window_right < seqlen_q - 1 else -1,
        softcap=float(request.softcap),
        bias=None if bias is None else (bias[0][0] == 1, bias[0][1] == 1, bias[0][2] == 1),
        bias_dtype=None if bias is None else bias[1],
        alibi=None if alibi is None else ("head" if len(alibi[0]) == 1 else "batch_head"),
        sinks="s_aux" in given,
        seqused_k="seqused_k" in given,
        needs_grad=modes[0] or (modes[1] and any(fact[3] for fact in given.values())),
        page_size=k[0][1] if "block_table" in given else 0,
        leftpad_k="leftpad_k" in given,
        k_format=stored_format(k[1]),
        v_format=stored_format(v[1]),
        num_splits=request.num_splits,
        dropout_p=request.dropout_p,
    )


_cached_problem = lru_cache(maxsize=4096)(_problem)


def make_request(
    function: str,
    dropout_p: float,
    scale: float | None,
    causal: bool,
    window_size: Any,
    softcap: float,
    impl: str,
    kernel: str | None,
    lengths: tuple[Any, Any] | None = None,
    validate: bool = False,
    num_splits: int = 0,
) -> Request:
    """The request of a call; dropout and the form of the window and the lengths are checked here.

    ``lengths`` are max_seqlen_q and max_seqlen_k of a packed call.
    """
    if dropout_p != 0.0:
        _check_dropout(function, dropout_p)
    left, right = _window_bounds(function, window_size)
    seqlen_q = seqlen_k = None
    if lengths is not None:
        seqlen_q = _as_length(function, "max_seqlen_q", lengths[0])
        seqlen_k = _as_length(function, "max_seqlen_k", lengths[1])
    window = left, right
    options = impl, kernel, validate, num_splits, float(dropout_p)
    return Request(function, seqlen_q, seqlen_k, scale, causal, *window, softcap, *options)


def with_key_lengths(inputs: AttentionInputs, request: Request) -> tuple[AttentionInputs, Request]:
    """A packed call as a problem takes it: a paged cache has lengths, and no offsets, of keys.

    Its longest keys do not matter, and would make another problem of every step of a decode.
    """
    starts = inputs.cu_seqlens_k
    if inputs.block_table is None or not isinstance(starts, Tensor):
        return inputs, request
    used = starts.diff() if inputs.seqused_k is None else inputs.seqused_k
    return (
        inputs._replace(cu_seqlens_k=None, seqused_k=used),
        request._replace(max_seqlen_k=None),
    )


def unpack(function: str, name: str, packed: object, form: tuple[int, int]) -> tuple[Tensor, ...]:
    """The parts of a tensor packed along its third-last dimension; ``form`` is (parts, rank)."""
    parts, rank = form
    if not isinstance(packed, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(packed).__name__}")
    if packed.ndim != rank or packed.shape[-3] != parts:
        rows = "total" if rank == 4 else "B, S"
        raise ValueError(
            f"{function}: {name} must be ({rows}, {parts}, heads, head_dim), got "
            f"{words(packed.shape)}"
        )
    return packed.unbind(-3)


def _check_dropout(function: str, dropout_p: object) -> None:
    if not isinstance(dropout_p, (int, float)):
        raise TypeError(f"{function}: dropout_p must be a number, got {type(dropout_p).__name__}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{function}: dropout_p must be in [0, 1), got {dropout_p}")


def _window_bounds(function: str, window_size: Any) -> tuple[int, int]:
    """(left, right) of a window, each an int from -1."""
    try:
        left, right = window_size
    except (TypeError, ValueError):
        left = right = cast("Any", None)
    for bound in (left, right):
        if not isinstance(bound, _INTEGERS):
            raise TypeError(f"{function}: window_size must be two ints, got {window_size!r}")
    if left < -1 or right < -1:
        raise ValueError(
            f"{function}: window_size must be from 0, or -1 for unbounded, got ({left}, {right})"
        )
    return left, right


def _as_length(function: str, name: str, value: Any) -> int:
    """A length as an int; a tensor of one integer is read, which waits for its device."""
    if isinstance(value, _INTEGERS):
        return value  # pyright: ignore[reportReturnType] SymInt stands for an int
    if isinstance(value, Tensor) and value.ndim == 0 and not value.dtype.is_floating_point:
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an int or a tensor of one, got {type(value).__name__}"
        ) from None
