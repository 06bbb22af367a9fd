"""Errors that only the tensors themselves show: values of lengths and pages, outputs, gradients."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import pairwise, repeat
from typing import NoReturn, cast

import torch
from torch import Tensor

from .checks import public_name, words
from .gradients import QueryRows
from .problem import AttentionProblem
from .request import AttentionInputs, Request
from .settled import once


def check_lengths(problem: AttentionProblem, inputs: AttentionInputs, request: Request) -> None:
    """Check the values of cu_seqlens, seqused_k, leftpad_k and block_table, without any waiting.

    CPU tensors always, others under ``validate=True``. Traced tensors have no values to check.
    """
    name = check_lengths, problem, inputs.q.shape[0], inputs.k.shape[0], request.validate
    once(inputs.lengths, name, lambda: _check_lengths(problem, inputs, request))


def _check_lengths(problem: AttentionProblem, inputs: AttentionInputs, request: Request) -> None:
    starts_q, starts_k = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    function, offsets_k = request.function, None
    if starts_q is not None:
        if not is_readable(starts_q, request.validate):
            return
        sides = (inputs.q.shape[0], problem.seqlen_q), (inputs.k.shape[0], problem.seqlen_k)
        offsets_k = checked_offsets(function, "q", starts_q, *sides[0])
        if starts_k is not None and (starts_k is not starts_q or sides[0] != sides[1]):
            offsets_k = checked_offsets(function, "k", starts_k, *sides[1])
    for name, counts in ("seqused_k", inputs.seqused_k), ("leftpad_k", inputs.leftpad_k):
        if counts is None or not is_readable(counts, request.validate):
            continue
        most: Iterable[int] = repeat(problem.seqlen_k)
        if offsets_k is not None and starts_k is not None:
            most = list(map(operator.sub, offsets_k[1:], offsets_k))
        _check_counts(function, public_name(function, name), _values(counts), most)
    table = inputs.block_table
    if table is not None and table.numel() and is_readable(table, request.validate):
        check_pages(function, table, inputs.k.shape[0])


def _check_counts(function: str, name: str, counts: list[int], most: Iterable[int]) -> None:
    if min(counts, default=0) >= 0 and all(map(operator.le, counts, most)):
        return
    for index, (count, limit) in enumerate(zip(counts, most, strict=False)):
        if not 0 <= count <= limit:
            raise ValueError(
                f"{function}: {name} must lie between 0 and the {limit} keys of its sequence, got "
                f"{count} for sequence {index}"
            )


def check_pages(function: str, table: Tensor, pages: int) -> None:
    """ValueError where a block table names a page that the cache does not have."""
    least, most = (int(x) for x in table.aminmax())
    if least < -1 or most >= pages:
        raise ValueError(
            f"{function}: block_table (or cache_batch_idx) must hold pages from 0 to {pages - 1}, "
            f"or -1 for none, got {least if least < -1 else most}"
        )


def is_readable(lengths: Tensor, validate: bool) -> bool:
    """Whether reading the values waits for no device, or is asked for."""
    return type(lengths) is Tensor and (lengths.is_cpu or validate and not lengths.is_meta)


def _values(lengths: Tensor) -> list[int]:
    return cast("list[int]", lengths.tolist())


def checked_offsets(
    function: str, side: str, offsets: Tensor, total: int, longest: int
) -> list[int]:
    """The values of one cu_seqlens, which ascend from 0 to ``total`` in steps up to ``longest``."""
    starts = _values(offsets)
    if starts[0] != 0 or starts[-1] != total:
        raise ValueError(
            f"{function}: cu_seqlens_{side} must run from 0 to the {total} rows of {side}, got "
            f"{starts[0]} to {starts[-1]}"
        )
    start = 0
    for end in starts:
        if not 0 <= end - start <= longest:
            _refuse_offsets(function, side, starts, longest)
        start = end
    return starts


def _refuse_offsets(function: str, side: str, starts: list[int], longest: int) -> NoReturn:
    for index, (start, end) in enumerate(pairwise(starts)):
        if end < start:
            raise ValueError(
                f"{function}: cu_seqlens_{side} must not decrease, got {start} followed by {end} "
                f"at {index}"
            )
    most = max(map(operator.sub, starts[1:], starts))
    raise ValueError(
        f"{function}: max_seqlen_{side} must be at least the longest sequence, {most}, got "
        f"{longest}"
    )


def check_out(
    out: object,
    problem: AttentionProblem,
    inputs: AttentionInputs,
    request: Request,
    name: str = "out",
) -> None:
    """Check a tensor of the output's form: that which a call writes into, or one of a backward."""
    shape = (*inputs.q.shape[:-1], problem.head_dim_v)
    _check_form(request.function, name, out, shape, problem.dtype, inputs, "q's dtype ")


def check_rows(
    rows: QueryRows, problem: AttentionProblem, inputs: AttentionInputs, request: Request
) -> None:
    """Check what a user gives to a backward pass, by the names of flash_attn."""
    check_out(rows.o, problem, inputs, request)
    check_out(rows.grad_o, problem, inputs, request, "dout")
    shape = problem.batch, problem.heads_q, problem.seqlen_q
    if problem.layout == "varlen":
        shape = problem.heads_q, inputs.q.shape[0]
    _check_form(request.function, "softmax_lse", rows.lse, shape, torch.float32, inputs)


def check_gradient(name: str, gradient: object, inputs: AttentionInputs, request: Request) -> None:
    """Check a tensor into which the gradient of q, k or v is to be written, of any dtype."""
    x = getattr(inputs, name)
    dtype = gradient.dtype if isinstance(gradient, Tensor) else x.dtype
    _check_form(request.function, f"d{name}", gradient, x.shape, dtype, inputs)


def _check_form(
    function: str,
    name: str,
    x: object,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    inputs: AttentionInputs,
    whose: str = "",
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype != dtype:
        raise TypeError(f"{function}: {name} must have {whose}{dtype}, got {x.dtype}")
    device = inputs.q.device
    if tuple(x.shape) != tuple(shape) or x.device != device:
        raise ValueError(
            f"{function}: {name} must be {words(shape)} on {device}, got {words(x.shape)} on "
            f"{x.device}"
        )
