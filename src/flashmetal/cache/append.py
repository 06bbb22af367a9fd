"""One append to a cache of keys and values, described without its tensors and checked."""

from __future__ import annotations

import operator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..checks import DTYPES, Facts, batch_of_offsets, check_cache, fact_of, row_length, words
from ..settled import once
from ..value_checks import check_pages, checked_offsets, is_readable
from .formats import stored_format


class AppendInputs(NamedTuple):
    """The tensors of one append, in the order of the operator's arguments.

    The new rows are dense, k_new (B, Snew, Hk, D) and v_new (B, Snew, Hk, Dv), or packed,
    (total_new, Hk, D) with ``cu_seqlens_new``. Row t of sequence b becomes its key
    cache_seqlens[b] + t.
    The caches are those of :class:`.request.AttentionInputs`: (B, Smax, Hk, D) without a block
    table, (pages, page_size, Hk, D) with one, in any format of :mod:`.cache.formats`.

    With ``cos`` and ``sin`` the new keys are rotated before they are stored, key t by row
    start[b] + t of them, where start is ``rotary_seqlens``, or ``cache_seqlens`` without it. ``q``,
    where it is given, (B, Sq, Hq, D) or packed with ``cu_seqlens_q``, is rotated into a new
    tensor: row i by start[b] + i, or all rows by start[b] where the request says so.
    """

    q: Tensor | None
    k_new: Tensor
    v_new: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cache_seqlens: Tensor  # (B,) int32, the keys before the append
    block_table: Tensor | None = None  # (B, pages of a sequence) int32
    cos: Tensor | None = None  # (seqlen_rotary, rotary_dim / 2), the dtype of k_new
    sin: Tensor | None = None
    k_scale: Tensor | None = None  # float32, of the cache's format, written
    v_scale: Tensor | None = None
    rotary_seqlens: Tensor | None = None  # (B,) int32
    cu_seqlens_q: Tensor | None = None  # (B + 1,) int32
    cu_seqlens_new: Tensor | None = None  # (B + 1,) int32

    @property
    def lengths(self) -> tuple[Tensor | None, ...]:
        """The tensors that say which rows there are, where new ones go, and how they are turned."""
        starts = self.cu_seqlens_q, self.cu_seqlens_new
        return *starts, self.cache_seqlens, self.block_table, self.rotary_seqlens


class AppendRequest(NamedTuple):
    """What an append was asked for beside its tensors, in the order of the operator.

    ``interleaved`` rotates elements 2 i and 2 i + 1 together, else i and i + rotary_dim / 2.
    ``rotate_rows``: query i is rotated by its own position, as causal and windowed calls want.
    """

    function: str
    max_seqlen_q: int | None = None  # of packed queries
    max_seqlen_new: int | None = None  # of packed new rows
    interleaved: bool = True
    rotate_rows: bool = True
    impl: str = "auto"
    validate: bool = False


class CacheAppend(NamedTuple):
    """A checked append: hashable, so that kernels are cached by it.

    ``seqlen_q`` and ``seqlen_new`` are the largest lengths of packed tensors; ``seqlen_q`` is 0
    without q. ``capacity`` is the keys a sequence can hold. ``rotary_dim`` 0 rotates nothing.
    """

    batch: int
    seqlen_q: int
    seqlen_new: int
    heads_q: int
    heads_k: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    device: str
    packed_q: bool
    packed_new: bool
    capacity: int
    page_size: int
    k_format: str
    v_format: str
    rotary_dim: int
    rotary_seqlens: bool
    interleaved: bool
    rotate_rows: bool

    @classmethod
    def of(cls, inputs: AppendInputs, request: AppendRequest) -> CacheAppend:
        """Describe an append, or raise ValueError or TypeError naming the public function."""
        function, given = request.function, _given(inputs, request.function)
        k, cache = given["k"], given["k_cache"]
        batch, seqlen_new = _rows(function, "k_new", given, "k", request.max_seqlen_new)
        seqlen_q, heads_q = 0, 0
        if "q" in given:
            batch_q, seqlen_q = _rows(function, "q", given, "q", request.max_seqlen_q)
            heads_q = given["q"][0][-2]
            if batch_q != batch or given["q"][0][-1] != k[0][-1]:
                raise ValueError(
                    f"{function}: q and k must have one batch size and head_dim, got "
                    f"{words(given['q'][0])} and {words(k[0])}"
                )
        _check_new_rows(function, given)
        check_cache(function, given, batch)
        table = given.get("block_table")
        return cls(
            batch=batch,
            seqlen_q=seqlen_q,
            seqlen_new=seqlen_new,
            heads_q=heads_q,
            heads_k=k[0][-2],
            head_dim=k[0][-1],
            head_dim_v=given["v"][0][-1],
            dtype=k[1],
            device=k[2].type,
            packed_q=inputs.cu_seqlens_q is not None,
            packed_new=inputs.cu_seqlens_new is not None,
            capacity=cache[0][1] * (1 if table is None else table[0][1]),
            page_size=0 if table is None else cache[0][1],
            k_format=stored_format(cache[1]),
            v_format=stored_format(given["v_cache"][1]),
            rotary_dim=_rotary_dim(function, given),
            rotary_seqlens=inputs.rotary_seqlens is not None,
            interleaved=request.interleaved,
            rotate_rows=request.rotate_rows,
        )


_PUBLIC_NAMES = tuple(
    {
        "k_new": "k",
        "v_new": "v",
        "cos": "rotary_cos",
        "sin": "rotary_sin",
        "cu_seqlens_new": "cu_seqlens_k_new",
    }.get(name, name)
    for name in AppendInputs._fields
)


def _given(inputs: AppendInputs, function: str) -> dict[str, Facts]:
    """The facts of the tensors by public name; all on one device, none to be differentiated."""
    given: dict[str, Facts] = {}
    for name, x in zip(_PUBLIC_NAMES, cast("tuple[object, ...]", inputs), strict=True):
        if isinstance(x, Tensor):
            given[name] = fact_of(x)
        elif x is not None or name in ("k", "v", "k_cache", "v_cache", "cache_seqlens"):
            raise TypeError(
                f"{function}: {name} must be a torch.Tensor, got {type(x).__name__}"
                + (", which an append needs" if x is None else "")
            )
    device = given["k"][2]
    for name, fact in given.items():
        if fact[2] != device:
            raise ValueError(
                f"{function}: {name} must be on k's device {device}, got {fact[2]}; move it there"
            )
        if fact[3] and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{function}: {name} requires gradients, and an append to a cache records none; "
                "call under torch.no_grad(), or detach it"
            )
    return given


def _rows(
    function: str, side: str, given: dict[str, Facts], name: str, longest: int | None
) -> tuple[int, int]:
    """(batch, largest length) of q or of the new rows."""
    starts, shape = given.get(f"cu_seqlens_{side}"), given[name][0]
    layout = "(B, S, heads, head_dim)" if starts is None else "(total, heads, head_dim)"
    if len(shape) != (4 if starts is None else 3) or min(shape[-2:]) < 1:
        raise ValueError(f"{function}: {name} must be {layout}, got {words(shape)}")
    if starts is None:
        return shape[0], shape[1]
    batch = batch_of_offsets(function, f"cu_seqlens_{side}", starts)
    # The longest is only an upper bound: all the rows are one.
    return batch, shape[0] if longest is None else longest


def _check_new_rows(function: str, given: dict[str, Facts]) -> None:
    k, v = given["k"], given["v"]
    if k[0][:-1] != v[0][:-1]:
        raise ValueError(
            f"{function}: k and v must agree in all but head_dim, got {words(k[0])} and "
            f"{words(v[0])}"
        )
    for name in "kv":
        new, cache = given[name], given[f"{name}_cache"]
        if new[1] not in DTYPES or new[1] != k[1] or given.get("q", k)[1] != k[1]:
            raise TypeError(
                f"{function}: q, k and v must have one dtype of float16, bfloat16, float32 and "
                f"float64, got {new[1]} for {name}; convert it with .to()"
            )
        if stored_format(cache[1]) == "dense" and cache[1] != new[1]:
            raise TypeError(
                f"{function}: {name} has dtype {new[1]} and {name}_cache {cache[1]}; convert one, "
                "or use a quantised cache of flashmetal.cache.formats"
            )
        if (new[0][-2], new[0][-1]) != (cache[0][-2], row_length(cache)):
            raise ValueError(
                f"{function}: {name} and {name}_cache must agree in heads and head_dim, got "
                f"{words(new[0])} and {words(cache[0])}"
            )


def _rotary_dim(function: str, given: dict[str, Facts]) -> int:
    cos, sin = given.get("rotary_cos"), given.get("rotary_sin")
    if cos is None and sin is None:
        return 0
    if cos is None or sin is None or cos[0] != sin[0] or len(cos[0]) != 2:
        raise ValueError(
            f"{function}: rotary_cos and rotary_sin must both be (seqlen_rotary, rotary_dim / 2), "
            f"got {cos and words(cos[0])} and {sin and words(sin[0])}"
        )
    k = given["k"]
    if cos[1] != k[1] or sin[1] != k[1]:
        raise TypeError(
            f"{function}: rotary_cos and rotary_sin must have k's dtype {k[1]}, got {cos[1]} and "
            f"{sin[1]}; convert them with .to()"
        )
    if 2 * cos[0][1] > k[0][-1]:
        raise ValueError(
            f"{function}: rotary_dim must be at most the head_dim {k[0][-1]}, got {2 * cos[0][1]}"
        )
    return 2 * cos[0][1]


def check_append_lengths(
    problem: CacheAppend, inputs: AppendInputs, request: AppendRequest
) -> None:
    """Check the values of lengths and pages before anything is written, where nothing waits."""
    sizes = [None if x is None else x.shape[0] for x in (*inputs[:4], inputs.cos)]
    name = check_append_lengths, problem, *sizes, request.validate
    once(inputs.lengths, name, lambda: _check_append_lengths(problem, inputs, request))


def _check_append_lengths(
    problem: CacheAppend, inputs: AppendInputs, request: AppendRequest
) -> None:
    function, lengths = request.function, inputs.cache_seqlens
    if not is_readable(lengths, request.validate):
        return
    new = [problem.seqlen_new] * problem.batch
    if inputs.cu_seqlens_new is not None:
        rows = inputs.k_new.shape[0], problem.seqlen_new
        starts = checked_offsets(function, "k_new", inputs.cu_seqlens_new, *rows)
        new = list(map(operator.sub, starts[1:], starts))
    queries = [problem.seqlen_q] * problem.batch
    if inputs.cu_seqlens_q is not None and inputs.q is not None:
        rows = inputs.q.shape[0], problem.seqlen_q
        starts = checked_offsets(function, "q", inputs.cu_seqlens_q, *rows)
        queries = list(map(operator.sub, starts[1:], starts))
    before = cast("list[int]", lengths.tolist())
    for index, (length, count) in enumerate(zip(before, new, strict=True)):
        if length < 0 or length + count > problem.capacity:
            raise ValueError(
                f"{function}: sequence {index} has {length} keys, and {count} more do not fit the "
                f"{problem.capacity} that its cache holds"
            )
    if inputs.block_table is not None:
        check_pages(function, inputs.block_table, inputs.k_cache.shape[0])
        _check_written_pages(problem, inputs, function, before, new)
    if inputs.cos is not None:
        if not problem.rotate_rows:
            queries = [min(count, 1) for count in queries]
        _check_angles(
            inputs, inputs.cos.shape[0], function, before, {"new key": new, "query": queries}
        )


def _check_angles(
    inputs: AppendInputs,
    positions: int,
    function: str,
    before: list[int],
    turned: dict[str, list[int]],
) -> None:
    """The tables of a rotation reach the last of the rows ``turned``, counts from the start."""
    starts = before
    if inputs.rotary_seqlens is not None:
        starts = cast("list[int]", inputs.rotary_seqlens.tolist())
    for row, counts in turned.items():
        last = max(map(operator.add, starts, counts), default=0)
        if last > positions or min(starts, default=0) < 0:
            raise ValueError(
                f"{function}: rotary_cos has {positions} positions, and the last {row} stands at "
                f"{last - 1}"
            )


def _check_written_pages(
    problem: CacheAppend, inputs: AppendInputs, function: str, before: list[int], new: list[int]
) -> None:
    """No new row may fall on a page of -1, nor may two sequences write one page."""
    assert inputs.block_table is not None
    table, size = cast("list[list[int]]", inputs.block_table.tolist()), problem.page_size
    writers: dict[int, int] = {}
    for index, (length, count) in enumerate(zip(before, new, strict=True)):
        if count == 0:
            continue
        for page in table[index][length // size : (length + count - 1) // size + 1]:
            if page < 0:
                raise ValueError(
                    f"{function}: block_table has no page for the new keys {length} to "
                    f"{length + count - 1} of sequence {index}"
                )
            if writers.setdefault(page, index) != index:
                raise ValueError(
                    f"{function}: sequences {writers[page]} and {index} would both write page "
                    f"{page}; give each its own copy first"
                )
