"""The errors a user can make in a call: its arguments, shapes and dtypes, and values of lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .cache.formats import DTYPES as FORMAT_DTYPES
from .cache.formats import check_format, scale_shape, stored_format

if TYPE_CHECKING:
    from .request import Request

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMPLS = ("auto", "metal", "portable", "stock", "reference")
KERNELS = ("tensor", "simdgroup", "scalar", "decode")
# Of a tensor: its shape, dtype and device, and whether it requires gradients.
Facts = tuple[tuple[int, ...], torch.dtype, torch.device, bool]


def check_request(request: Request) -> None:
    function = request.function
    for name, value in (("softmax_scale", request.scale), ("softcap", request.softcap)):
        if name == "softmax_scale" and value is None:
            continue
        if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
            raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")
        if not -math.inf < value < math.inf:
            raise ValueError(f"{function}: {name} must be finite, got {value}")
    if request.softcap < 0:
        raise ValueError(
            f"{function}: softcap must be positive, or 0.0 for none, got {request.softcap}"
        )
    if type(request.causal) is not bool:
        raise TypeError(f"{function}: causal must be a bool, got {type(request.causal).__name__}")
    if request.impl not in IMPLS:
        raise ValueError(f"{function}: impl must be one of {IMPLS}, got {request.impl!r}")
    if type(request.num_splits) is not int or request.num_splits < 0:
        raise ValueError(
            f"{function}: num_splits must be a positive int, or 0 for the plan's choice, got "
            f"{request.num_splits!r}"
        )
    if request.kernel is None:
        return
    if request.kernel not in KERNELS:
        raise ValueError(f"{function}: kernel must be one of {KERNELS}, got {request.kernel!r}")
    if request.impl != "metal":
        raise ValueError(
            f"{function}: kernel chooses among the Metal kernels and needs impl='metal', "
            f"got impl={request.impl!r}"
        )


def check_query_key_value(function: str, given: dict[str, Facts], packed: bool) -> None:
    """Ranks, devices, dtypes and formats, and that q, k and v fit each other."""
    rows_q = "total_q" if packed else "B, Sq"
    rows_k = "total_k" if packed else "B, Sk"
    if "block_table" in given:
        rows_k = "pages, page_size"
    q, k, v = (given[name] for name in "qkv")
    for name, (shape, *_) in zip("qkv", (q, k, v), strict=True):
        rows = rows_q if name == "q" else rows_k
        layout = f"({rows}, heads, head_dim)"
        if len(shape) != layout.count(",") + 1:
            raise ValueError(f"{function}: {name} must be {layout}, got {words(shape)}")
        if shape[-1] < 1 or shape[-2] < 1:
            raise ValueError(
                f"{function}: {name} must be {layout} with at least one head and a head_dim of at "
                f"least 1, got {words(shape)}"
            )
    for name, (_, _, device, _) in given.items():
        if device != q[2]:
            raise ValueError(
                f"{function}: {name} must be on q's device {q[2]}, got {device}; move it there"
            )
    allowed = [q[1], *FORMAT_DTYPES]
    if q[1] not in DTYPES or k[1] not in allowed or v[1] not in allowed:
        raise TypeError(
            f"{function}: q, k and v must have one dtype of float16, bfloat16, float32 and "
            f"float64, got {q[1]}, {k[1]} and {v[1]}; convert them with .to(), or "
            "quantise k and v with flashmetal.cache.formats"
        )
    for name in "kv":
        _check_scale(function, name, given, f"{name}_scale")
    if k[0][:-1] != v[0][:-1]:
        raise ValueError(
            f"{function}: k and v must agree in all but head_dim, got {words(k[0])} and "
            f"{words(v[0])}"
        )
    if q[0][-1] != row_length(k):
        raise ValueError(
            f"{function}: q and k must have one head_dim, got {q[0][-1]} and {row_length(k)}"
        )
    if q[0][-2] % k[0][-2] != 0:
        raise ValueError(
            f"{function}: the query heads must be a multiple of the key heads, got {q[0][-2]} "
            f"and {k[0][-2]}; the layout is {'(total, heads' if packed else '(B, S, heads'}, "
            "head_dim), transpose if yours has the heads before the sequence"
        )


def _check_scale(function: str, name: str, given: dict[str, Facts], scale_name: str) -> None:
    """The scale of k or v against its format."""
    shape, dtype, *_ = given[name]
    cache_format, scale = stored_format(dtype), given.get(scale_name)
    check_format(function, f"{name}'s format", cache_format, row_length(given[name]))
    inner = scale_shape(cache_format, row_length(given[name]))
    expected = None if inner is None else (*shape[:-1], *inner)
    if scale is None and expected is None:
        return
    if expected is None:
        raise ValueError(
            f"{function}: {scale_name} belongs to a quantised {name}, and {name} is {dtype}; "
            f"pass {scale_name}=None"
        )
    if scale is None or tuple(scale[0]) != expected or scale[1] != torch.float32:
        got = "none" if scale is None else f"{words(scale[0])} {scale[1]}"
        raise ValueError(
            f"{function}: an {cache_format} {name} needs {scale_name} {words(expected)} "
            f"torch.float32, got {got}; flashmetal.cache.formats.quantise returns it"
        )


def row_length(fact: Facts) -> int:
    """The head dimension of a tensor whose rows may be codes of two elements a byte."""
    shape, dtype, *_ = fact
    return shape[-1] * 2 if stored_format(dtype) == "int4" else shape[-1]


def check_layout(given: dict[str, Facts], request: Request) -> tuple[int, int, int]:
    """(batch, largest Sq, largest Sk) of a call."""
    function, packed = request.function, request.max_seqlen_q is not None
    q, k = given["q"][0], given["k"][0]
    if "block_table" not in given:
        if packed:
            return packed_lengths(given, request)
        if q[0] != k[0]:
            raise ValueError(f"{function}: q and k must have one batch size, got {q[0]}, {k[0]}")
        return q[0], q[1], k[1]
    batch, seqlen_q = q[0], q[1]
    if packed:
        if "seqused_k" not in given or "cu_seqlens_k" in given:
            raise TypeError(
                f"{function}: packed queries of a paged cache need seqused_k, the keys of each "
                "sequence, and no cu_seqlens_k"
            )
        batch, seqlen_q = packed_queries(given, request)
    pages = _check_table(function, given, batch)
    if k[1] < 1:
        raise ValueError(f"{function}: a page must hold at least 1 key, got k {words(k)}")
    return batch, seqlen_q, pages * k[1]


def _check_table(function: str, given: dict[str, Facts], batch: int) -> int:
    """The pages of a sequence, columns of the block table."""
    table, dtype, *_ = given["block_table"]
    if dtype != torch.int32:
        raise TypeError(f"{function}: block_table must be int32, got {dtype}; use .to(torch.int32)")
    if len(table) != 2 or table[0] != batch:
        raise ValueError(
            f"{function}: block_table must be ({batch}, pages of a sequence), one row a sequence, "
            f"got {words(table)}"
        )
    return table[1]


def check_cache(function: str, given: dict[str, Facts], batch: int) -> None:
    """The caches of an append: their layout, the lengths of their sequences and their scales."""
    k, v = given["k_cache"][0], given["v_cache"][0]
    rows = "pages, page_size" if "block_table" in given else "B, Smax"
    for name, shape in (("k_cache", k), ("v_cache", v)):
        if len(shape) != 4:
            raise ValueError(
                f"{function}: {name} must be ({rows}, heads, head_dim), got {words(shape)}"
            )
        _check_scale(function, name, given, f"{name[0]}_scale")
    if k[:-1] != v[:-1]:
        raise ValueError(
            f"{function}: k_cache and v_cache must agree in all but head_dim, got {words(k)} and "
            f"{words(v)}"
        )
    if "block_table" in given:
        _check_table(function, given, batch)
    elif k[0] != batch:
        raise ValueError(
            f"{function}: k_cache must have {batch} rows, one a sequence, got {words(k)}; "
            "cache_batch_idx picks rows of a larger cache"
        )
    for name in ("cache_seqlens", "rotary_seqlens"):
        if name in given:
            check_lengths_tensor(function, name, given[name], "(batch,)")
            if given[name][0][0] != batch:
                raise ValueError(
                    f"{function}: {name} must be ({batch},), got {words(given[name][0])}"
                )


def public_name(function: str, name: str) -> str:
    """What the functions over a cache call an input that others have too."""
    names = {"seqused_k": "cache_seqlens", "leftpad_k": "cache_leftpad"}
    return names.get(name, name) if function.endswith("with_kvcache") else name


def fact_of(x: Tensor) -> Facts:
    """What the checks need to know of a tensor."""
    return x.shape, x.dtype, x.device, x.requires_grad


def packed_queries(given: dict[str, Facts], request: Request) -> tuple[int, int]:
    """(batch, largest Sq) of packed queries."""
    return _packed_side("q", given, request.function, request.max_seqlen_q)


def packed_lengths(given: dict[str, Facts], request: Request) -> tuple[int, int, int]:
    """(batch, largest Sq, largest Sk) of a packed batch."""
    function = request.function
    batch, seqlen_q = packed_queries(given, request)
    batch_k, seqlen_k = _packed_side("k", given, function, request.max_seqlen_k)
    if batch != batch_k:
        raise ValueError(
            f"{function}: cu_seqlens_q and cu_seqlens_k must have one length (batch + 1), got "
            f"{batch + 1} and {batch_k + 1}"
        )
    return batch, seqlen_q, seqlen_k


def _packed_side(
    side: str, given: dict[str, Facts], function: str, longest: int | None
) -> tuple[int, int]:
    name = f"cu_seqlens_{side}"
    if name not in given:
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got None")
    batch = batch_of_offsets(function, name, given[name])
    if longest is None or longest < 0:
        raise ValueError(f"{function}: max_seqlen_{side} must be at least 0, got {longest}")
    return batch, longest


def batch_of_offsets(function: str, name: str, fact: Facts) -> int:
    """The sequences that one of the cu_seqlens counts."""
    check_lengths_tensor(function, name, fact, "(batch + 1,)")
    if fact[0][0] < 1:
        raise ValueError(f"{function}: {name} must hold batch + 1 offsets, got none")
    return fact[0][0] - 1


def check_extras(
    function: str, given: dict[str, Facts], sizes: tuple[int, int, int, int], packed: bool
) -> None:
    """Bias, slopes, sinks and used lengths against ``sizes`` (batch, heads_q, Sq, Sk)."""
    batch, heads_q, _, seqlen_k = sizes
    if "bias" in given:
        shape, dtype, *_ = given["bias"]
        if dtype not in (given["q"][1], torch.float32):
            raise TypeError(
                f"{function}: bias must be float32 or q's dtype {given['q'][1]}, got {dtype}; it "
                "is added to the scores: turn a boolean mask into 0 and -inf"
            )
        broadcast = len(shape) == 4 and all(
            size in (1, full) for size, full in zip(shape[:3], sizes[:3], strict=True)
        )
        if not broadcast or shape[3] != seqlen_k:
            lengths = "max_seqlen_q or 1, max_seqlen_k" if packed else "Sq or 1, Sk"
            raise ValueError(
                f"{function}: bias must be (B or 1, Hq or 1, {lengths}) with (B, Hq, Sq, Sk) = "
                f"{words(sizes)}, got {words(shape)}"
            )
    if "alibi_slopes" in given:
        shape, dtype, *_ = given["alibi_slopes"]
        if dtype != torch.float32:
            raise TypeError(f"{function}: alibi_slopes must be float32, got {dtype}; use .float()")
        if tuple(shape) not in ((heads_q,), (batch, heads_q)):
            raise ValueError(
                f"{function}: alibi_slopes must be (Hq,) or (B, Hq) with B {batch} and Hq "
                f"{heads_q}, got {words(shape)}"
            )
    if "s_aux" in given:
        shape, dtype, *_ = given["s_aux"]
        if not dtype.is_floating_point:
            raise TypeError(f"{function}: s_aux must be a floating-point tensor, got {dtype}")
        if tuple(shape) != (heads_q,):
            raise ValueError(
                f"{function}: s_aux must be ({heads_q},), one sink a query head, got {words(shape)}"
            )
    for name in ("seqused_k", "leftpad_k"):
        if name not in given:
            continue
        public = public_name(function, name)
        check_lengths_tensor(function, public, given[name], "(batch,)")
        if given[name][0][0] != batch:
            raise ValueError(
                f"{function}: {public} must be ({batch},), one length a sequence, got "
                f"{words(given[name][0])}"
            )


def check_lengths_tensor(function: str, name: str, fact: Facts, expected: str) -> None:
    shape, dtype, *_ = fact
    if dtype != torch.int32:
        raise TypeError(f"{function}: {name} must be int32, got {dtype}; use .to(torch.int32)")
    if len(shape) != 1:
        raise ValueError(f"{function}: {name} must be {expected}, got {words(shape)}")


def words(shape: Sequence[int]) -> str:
    return str(tuple(shape))
