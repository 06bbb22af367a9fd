"""What a public function was given: its tensors, and what it was asked for beside them."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

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

    k and v may be codes of :mod:`.cache.formats`, each in its own format, beside their scales.
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

    @property
    def lengths(self) -> tuple[Tensor | None, ...]:
        """The tensors that say where the sequences lie."""
        starts = self.cu_seqlens_q, self.cu_seqlens_k
        return *starts, self.seqused_k, self.leftpad_k, self.block_table


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
        seqlen_q = as_length(function, "max_seqlen_q", lengths[0])
        seqlen_k = as_length(function, "max_seqlen_k", lengths[1])
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
            f"{tuple(packed.shape)}"
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


def as_length(function: str, name: str, value: Any) -> int:
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
