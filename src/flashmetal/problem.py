"""One attention call, described without its tensors: every error a user can make is raised here."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IMPLS = ("auto", "metal", "portable", "stock", "reference")
KERNELS = ("tile", "scalar")
_forward_ad: Any = forward_ad  # its current level has no public name


class AttentionInputs(NamedTuple):
    """The tensors of one call, in the order of the operators' arguments.

    Dense: q (B, Sq, Hq, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv). Packed ("varlen"): q
    (total_q, Hq, D), k (total_k, Hk, D), v (total_k, Hk, Dv), and both ``cu_seqlens``.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None = None  # (B|1, Hq|1, Sq|1, Sk); packed: Sq, Sk are the largest lengths
    alibi_slopes: Tensor | None = None  # (Hq,) or (B, Hq) float32
    sinks: Tensor | None = None  # (Hq,) float32, natural-log units
    cu_seqlens_q: Tensor | None = None  # (B + 1,) int32
    cu_seqlens_k: Tensor | None = None  # (B + 1,) int32
    seqused_k: Tensor | None = None  # (B,) int32


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


class AttentionProblem(NamedTuple):
    """A checked call in canonical form: hashable, so that plans and kernels are cached by it.

    ``seqlen_q`` and ``seqlen_k`` are the largest lengths of a packed batch. A window bound is -1
    where it hides nothing; causal is ``window_right == 0``. ``bias`` says which of (batch, head,
    query) are broadcast; ``alibi`` is "head" or "batch_head"; ``softcap`` 0 is none.
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
        forward_mode = bool(_forward_ad._current_level >= 0)
        modes = forward_mode, torch.is_grad_enabled()
        if not torch.compiler.is_compiling():
            try:
                return _cached_problem(facts, request, modes)
            except TypeError:
                pass  # a wrong argument, told below, or the symbolic sizes of a traced graph
        return _problem(facts, request, modes)


_PUBLIC_NAMES = tuple(["s_aux" if x == "sinks" else x for x in AttentionInputs._fields])
# Of a tensor: its shape, dtype and device, and whether it requires gradients.
_Facts = tuple[tuple[int, ...], torch.dtype, torch.device, bool]


def _problem(
    facts: tuple[_Facts | type | None, ...], request: Request, modes: tuple[bool, bool]
) -> AttentionProblem:
    """The checked problem; ``modes`` says whether forward and reverse autograd record."""
    function = request.function
    given: dict[str, _Facts] = {}
    for name, fact in zip(_PUBLIC_NAMES, facts, strict=True):
        if isinstance(fact, type):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, got {fact.__name__}")
        if fact is not None:
            given[name] = fact
        elif name in ("q", "k", "v"):
            raise TypeError(f"{function}: {name} must be a torch.Tensor, got None")
    _check_request(request)
    q, k, v = given["q"], given["k"], given["v"]
    packed = request.max_seqlen_q is not None
    _check_query_key_value(function, given, packed)
    if packed:
        batch, seqlen_q, seqlen_k = _packed_lengths(given, request)
    else:
        batch, seqlen_q, seqlen_k = q[0][0], q[0][1], k[0][1]
    heads_q, head_dim = q[0][-2:]
    _check_extras(function, given, (batch, heads_q, seqlen_q, seqlen_k), packed)
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
        head_dim_v=v[0][-1],
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
    )


_cached_problem = lru_cache(maxsize=4096)(_problem)


def _check_request(request: Request) -> None:
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
    if request.kernel is None:
        return
    if request.kernel not in KERNELS:
        raise ValueError(f"{function}: kernel must be one of {KERNELS}, got {request.kernel!r}")
    if request.impl != "metal":
        raise ValueError(
            f"{function}: kernel chooses among the Metal kernels and needs impl='metal', "
            f"got impl={request.impl!r}"
        )


def _check_query_key_value(function: str, given: dict[str, _Facts], packed: bool) -> None:
    rows = "total_" if packed else "B, S"
    q, k, v = (given[name] for name in "qkv")
    for name, (shape, *_) in zip("qkv", (q, k, v), strict=True):
        layout = f"({rows}{'q' if name == 'q' else 'k'}, heads, head_dim)"
        if len(shape) != (3 if packed else 4):
            raise ValueError(f"{function}: {name} must be {layout}, got {_words(shape)}")
        if shape[-1] < 1 or shape[-2] < 1:
            raise ValueError(
                f"{function}: {name} must be {layout} with at least one head and a head_dim of at "
                f"least 1, got {_words(shape)}"
            )
    for name, (_, dtype, device, _) in given.items():
        if device != q[2]:
            raise ValueError(
                f"{function}: {name} must be on q's device {q[2]}, got {device}; move it there"
            )
        if name in "qkv" and (dtype not in DTYPES or dtype != q[1]):
            raise TypeError(
                f"{function}: q, k and v must have one dtype of float16, bfloat16, float32 and "
                f"float64, got {q[1]}, {k[1]} and {v[1]}; convert them with .to()"
            )
    if k[0][:-1] != v[0][:-1]:
        raise ValueError(
            f"{function}: k and v must agree in all but head_dim, got {_words(k[0])} and "
            f"{_words(v[0])}"
        )
    if q[0][-1] != k[0][-1]:
        raise ValueError(
            f"{function}: q and k must have one head_dim, got {q[0][-1]} and {k[0][-1]}"
        )
    if q[0][-2] % k[0][-2] != 0:
        raise ValueError(
            f"{function}: the query heads must be a multiple of the key heads, got {q[0][-2]} "
            f"and {k[0][-2]}; the layout is {'(total, heads' if packed else '(B, S, heads'}, "
            "head_dim), transpose if yours has the heads before the sequence"
        )
    if not packed and q[0][0] != k[0][0]:
        raise ValueError(f"{function}: q and k must have one batch size, got {q[0][0]}, {k[0][0]}")


def _packed_lengths(given: dict[str, _Facts], request: Request) -> tuple[int, int, int]:
    """(batch, largest Sq, largest Sk) of a packed batch."""
    function = request.function
    for name in ("cu_seqlens_q", "cu_seqlens_k"):
        if name not in given:
            raise TypeError(f"{function}: {name} must be a torch.Tensor, got None")
        _check_lengths_tensor(function, name, given[name], "(batch + 1,)")
        if given[name][0][0] < 1:
            raise ValueError(f"{function}: {name} must hold batch + 1 offsets, got none")
    sizes = given["cu_seqlens_q"][0][0], given["cu_seqlens_k"][0][0]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{function}: cu_seqlens_q and cu_seqlens_k must have one length (batch + 1), got "
            f"{sizes[0]} and {sizes[1]}"
        )
    lengths = request.max_seqlen_q, request.max_seqlen_k
    for name, length in zip(("max_seqlen_q", "max_seqlen_k"), lengths, strict=True):
        if length is None or length < 0:
            raise ValueError(f"{function}: {name} must be at least 0, got {length}")
    assert lengths[0] is not None
    assert lengths[1] is not None
    return sizes[0] - 1, lengths[0], lengths[1]


def _check_extras(
    function: str, given: dict[str, _Facts], sizes: tuple[int, int, int, int], packed: bool
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
                f"{_words(sizes)}, got {_words(shape)}"
            )
    if "alibi_slopes" in given:
        shape, dtype, *_ = given["alibi_slopes"]
        if dtype != torch.float32:
            raise TypeError(f"{function}: alibi_slopes must be float32, got {dtype}; use .float()")
        if tuple(shape) not in ((heads_q,), (batch, heads_q)):
            raise ValueError(
                f"{function}: alibi_slopes must be (Hq,) or (B, Hq) with B {batch} and Hq "
                f"{heads_q}, got {_words(shape)}"
            )
    if "s_aux" in given:
        shape, dtype, *_ = given["s_aux"]
        if not dtype.is_floating_point:
            raise TypeError(f"{function}: s_aux must be a floating-point tensor, got {dtype}")
        if tuple(shape) != (heads_q,):
            raise ValueError(
                f"{function}: s_aux must be ({heads_q},), one sink a query head, got "
                f"{_words(shape)}"
            )
    if "seqused_k" in given:
        _check_lengths_tensor(function, "seqused_k", given["seqused_k"], "(batch,)")
        if given["seqused_k"][0][0] != batch:
            raise ValueError(
                f"{function}: seqused_k must be ({batch},), one length a sequence, got "
                f"{_words(given['seqused_k'][0])}"
            )


def _check_lengths_tensor(function: str, name: str, fact: _Facts, expected: str) -> None:
    shape, dtype, *_ = fact
    if dtype != torch.int32:
        raise TypeError(f"{function}: {name} must be int32, got {dtype}; use .to(torch.int32)")
    if len(shape) != 1:
        raise ValueError(f"{function}: {name} must be {expected}, got {_words(shape)}")


def _words(shape: Sequence[int]) -> str:
    return str(tuple(shape))


def check_lengths(problem: AttentionProblem, inputs: AttentionInputs, request: Request) -> None:
    """Check the values of cu_seqlens and seqused_k, where that waits for no device.

    CPU tensors always, others under ``validate=True``. Traced tensors have no values to check.
    """
    starts_q, starts_k, seqused_k = inputs.cu_seqlens_q, inputs.cu_seqlens_k, inputs.seqused_k
    function, offsets_k = request.function, None
    if starts_q is not None and starts_k is not None:
        if not _is_readable(starts_q, request):
            return
        sides = (inputs.q.shape[0], problem.seqlen_q), (inputs.k.shape[0], problem.seqlen_k)
        offsets_k = _checked_offsets(function, "q", starts_q, *sides[0])
        if starts_k is not starts_q or sides[0] != sides[1]:
            offsets_k = _checked_offsets(function, "k", starts_k, *sides[1])
    if seqused_k is not None and _is_readable(seqused_k, request):
        for index, length in enumerate(_values(seqused_k)):
            most = problem.seqlen_k
            if offsets_k is not None:
                most = offsets_k[index + 1] - offsets_k[index]
            if not 0 <= length <= most:
                raise ValueError(
                    f"{function}: seqused_k must lie between 0 and the {most} keys of its "
                    f"sequence, got {length} for sequence {index}"
                )


def _is_readable(lengths: Tensor, request: Request) -> bool:
    return type(lengths) is Tensor and (lengths.is_cpu or request.validate)


def _values(lengths: Tensor) -> list[int]:
    return cast("list[int]", lengths.tolist())


def _checked_offsets(
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
    for index, end in enumerate(starts):
        if end < start:
            raise ValueError(
                f"{function}: cu_seqlens_{side} must not decrease, got {start} followed by {end} "
                f"at {index - 1}"
            )
        if end - start > longest:
            most = max(map(operator.sub, starts[1:], starts))
            raise ValueError(
                f"{function}: max_seqlen_{side} must be at least the longest sequence, {most}, got "
                f"{longest}"
            )
        start = end
    return starts


def check_out(
    out: object, problem: AttentionProblem, inputs: AttentionInputs, request: Request
) -> None:
    """Check the tensor that a call writes into."""
    function, q = request.function, inputs.q
    shape = (*q.shape[:-1], problem.head_dim_v)
    if not isinstance(out, Tensor):
        raise TypeError(f"{function}: out must be a torch.Tensor, got {type(out).__name__}")
    if out.dtype != q.dtype:
        raise TypeError(f"{function}: out must have q's dtype {q.dtype}, got {out.dtype}")
    if out.shape != shape or out.device != q.device:
        raise ValueError(
            f"{function}: out must be {shape} on {q.device}, got {_words(out.shape)} on "
            f"{out.device}"
        )


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
) -> Request:
    """The request of a call; dropout and the form of the window and the lengths are checked here.

    ``lengths`` are max_seqlen_q and max_seqlen_k of a packed call.
    """
    if dropout_p != 0.0:
        _refuse_dropout(function, dropout_p)
    left, right = _window_bounds(function, window_size)
    seqlen_q = seqlen_k = None
    if lengths is not None:
        seqlen_q = _as_length(function, "max_seqlen_q", lengths[0])
        seqlen_k = _as_length(function, "max_seqlen_k", lengths[1])
    return Request(
        function, seqlen_q, seqlen_k, scale, causal, left, right, softcap, impl, kernel, validate
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
            f"{_words(packed.shape)}"
        )
    return packed.unbind(-3)


def refuse_block_table(function: str, block_table: Tensor | None) -> None:
    """NotImplementedError for paged keys."""
    if block_table is not None:
        raise NotImplementedError(
            f"{function}: block_table (a paged cache) is not implemented yet; gather the pages "
            "into packed k and v and pass block_table=None"
        )


def _refuse_dropout(function: str, dropout_p: object) -> None:
    if not isinstance(dropout_p, (int, float)):
        raise TypeError(f"{function}: dropout_p must be a number, got {type(dropout_p).__name__}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{function}: dropout_p must be in [0, 1), got {dropout_p}")
    if dropout_p > 0.0:
        raise NotImplementedError(
            f"{function}: attention dropout is not implemented yet, got dropout_p={dropout_p}; "
            "pass 0.0, as every model does in evaluation"
        )


def _window_bounds(function: str, window_size: Any) -> tuple[int, int]:
    """(left, right) of a window, each an int from -1."""
    try:
        left, right = window_size
    except (TypeError, ValueError):
        left = right = cast("Any", None)
    for bound in (left, right):
        if not isinstance(bound, (int, torch.SymInt)):
            raise TypeError(f"{function}: window_size must be two ints, got {window_size!r}")
    if left < -1 or right < -1:
        raise ValueError(
            f"{function}: window_size must be from 0, or -1 for unbounded, got ({left}, {right})"
        )
    return left, right


def _as_length(function: str, name: str, value: Any) -> int:
    """A length as an int; a tensor of one integer is read, which waits for its device."""
    if isinstance(value, (int, torch.SymInt)):
        return value  # pyright: ignore[reportReturnType] SymInt stands for an int
    if isinstance(value, Tensor) and value.ndim == 0 and not value.dtype.is_floating_point:
        return int(value)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must be an int or a tensor of one, got {type(value).__name__}"
        ) from None
