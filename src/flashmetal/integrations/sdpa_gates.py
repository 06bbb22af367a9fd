"""Who serves a call of PyTorch's scaled_dot_product_attention, and why: rules, free of tensors.

The rules are asked in this order, and the first that has an answer decides:

1. form: a call that is not one of ours is PyTorch's;
2. request: ``sdpa_kernel`` may have ruled fused attention out;
3. always: ``install(always=True)`` takes every call that is left;
4. correctness: PyTorch's MPS attention is known to be wrong for the call;
5. size: a tiny call stays where its host cost is lowest;
6. speed: PyTorch's own fused kernel serves the call, and nothing says that ours is faster;
7. memory: without a fused kernel PyTorch forms the scores, ours never does.

Issue numbers are those of github.com/pytorch/pytorch.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import NamedTuple

import torch

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Our call may cost the host 30 us more, in which an M1's 2.6 TFLOP/s make this many operations.
_TINY_FLOP = 1 << 26
# A decode step is bound by reading k and v: below so many elements of k the host is.
_DECODE_ROWS = 8
_DECODE_ELEMENTS = 1 << 19
# Random numbers that depend on the position are dear on a CPU: only this much memory pays for them.
_CPU_DROPOUT_BYTES = 1 << 30
_INDEXABLE_SCORES = 1 << 32
# Head dimensions of torch's Metal kernels: one to eight queries, and more.
_VECTOR_HEAD_DIMS = (64, 96, 128, 256)
_PREFILL_HEAD_DIMS = (32, 64, 72, 80, 96, 128, 256)


class Call(NamedTuple):
    """What the rules know of one call. Shapes are torch's: (B, H, S, D), or (B, S, D).

    ``mask`` is its shape and dtype. ``unit_stride``: the last strides of query, key and value are
    1. ``fused_allowed`` is what ``torch.nn.attention.sdpa_kernel`` left of flash attention.
    """

    device: str
    dtypes: tuple[torch.dtype, ...]
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    mask: tuple[tuple[int, ...], torch.dtype] | None = None
    mask_needs_grad: bool = False
    dropout_p: float = 0.0
    is_causal: bool = False
    enable_gqa: bool = False
    needs_grad: bool = False
    unit_stride: bool = True
    fused_allowed: bool = True
    always: bool = False


class Software(NamedTuple):
    """The versions that the rules depend on, each (major, minor); macos (0, 0) elsewhere."""

    torch: tuple[int, int]
    macos: tuple[int, int] = (0, 0)


class Verdict(NamedTuple):
    """Whether flashmetal serves a call, the rule that decided, and its reason in words."""

    flashmetal: bool
    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{'flashmetal' if self.flashmetal else 'PyTorch'} ({self.rule}): {self.reason}"


class _Sizes(NamedTuple):
    """The sizes of a call whose form is ours."""

    batch: int
    heads: int
    heads_k: int
    rows: int
    keys: int
    head_dim: int
    head_dim_v: int

    @property
    def scores(self) -> int:
        return self.batch * self.heads * self.rows * self.keys

    @property
    def is_decode(self) -> bool:
        return self.rows <= _DECODE_ROWS and self.rows <= self.keys


def decide(call: Call, software: Software) -> Verdict:
    """Who serves the call."""
    reason = _refuse_form(call)
    if reason is not None:
        return Verdict(False, "form", reason)
    if not call.fused_allowed:
        return Verdict(False, "request", "sdpa_kernel() has ruled flash attention out")
    if call.always:
        return Verdict(True, "always", "install(always=True) takes every call of a known form")
    sizes = _sizes(call)
    reason = _known_wrong(call, sizes, software) if call.device == "mps" else None
    if reason is not None:
        return Verdict(True, "correctness", reason)
    flop = 2 * sizes.scores * (sizes.head_dim + sizes.head_dim_v)
    read = sizes.batch * sizes.heads_k * sizes.keys * sizes.head_dim
    if flop < _TINY_FLOP and read < _DECODE_ELEMENTS:
        return Verdict(False, "size", "too small to be worth more host time than PyTorch's")
    reason = _refuse_fused(call, sizes, software)
    if reason is not None:
        size = sizes.scores * call.dtypes[0].itemsize
        formed = f"PyTorch would form {size // 2**20} MiB of scores: {reason}"
        if call.device == "cpu" and call.dropout_p and size < _CPU_DROPOUT_BYTES:
            return Verdict(False, "speed", f"{formed}; on a CPU that is the faster way")
        return Verdict(True, "memory", formed)
    groups = sizes.heads // sizes.heads_k
    if groups > 1 and sizes.is_decode and read >= _DECODE_ELEMENTS:
        return Verdict(
            True,
            "speed",
            f"a decode step of grouped heads: PyTorch's kernel reads k and v {groups} times, ours "
            "once",
        )
    return Verdict(False, "speed", "PyTorch's fused kernel serves it, and ours is not known faster")


@lru_cache(maxsize=1)
def installed_software() -> Software:
    """The versions of this process."""
    release = [int(x) for x in torch.__version__.split(".")[:2]]
    macos = [int(x) for x in platform.mac_ver()[0].split(".")[:2] if x]
    return Software((release[0], release[1]), (macos[0], macos[-1]) if macos else (0, 0))


def _refuse_form(call: Call) -> str | None:
    """Why the call is none of ours, or None. What is wrong in itself PyTorch will say best."""
    query, key, value = call.query, call.key, call.value
    ranks = {len(query), len(key), len(value)}
    if ranks not in ({3}, {4}):
        return "query, key and value are not all of 3 or all of 4 dimensions"
    reasons = (
        (set(call.dtypes) - {call.dtypes[0]}, "query, key and value differ in dtype"),
        (call.dtypes[0] not in _DTYPES, f"flashmetal does not take {call.dtypes[0]}"),
        (
            call.device == "mps" and call.dtypes[0] == torch.float64,
            "Apple GPUs have no float64",
        ),
        (query[0] != key[0] or key[:-1] != value[:-1], "sizes differ, to be broadcast or refused"),
        (query[-1] != key[-1], "query and key differ in head dimension"),
        (0 in (*query, *key, *value), "there is an empty dimension"),
        (call.mask is not None and call.is_causal, "both attn_mask and is_causal are given"),
        (not 0.0 <= call.dropout_p < 1.0, "dropout_p is outside [0, 1)"),
    )
    for refused, reason in reasons:
        if refused:
            return reason
    if len(query) == 4 and query[1] != key[1] and (not call.enable_gqa or query[1] % key[1]):
        return "the heads differ, to be broadcast or refused"
    return None if call.mask is None else _refuse_mask(call.mask, call)


def _refuse_mask(mask: tuple[tuple[int, ...], torch.dtype], call: Call) -> str | None:
    shape, dtype = mask
    if dtype not in (torch.bool, torch.float32, call.dtypes[0]):
        return f"attn_mask is {dtype}"
    full = (*call.query[:-1], call.key[-2])
    if not 2 <= len(shape) <= len(full):
        return f"attn_mask has {len(shape)} dimensions"
    pairs = zip(reversed(shape), reversed(full), strict=False)
    if any(size not in (1, whole) for size, whole in pairs):
        return "attn_mask does not broadcast to the scores"
    return None


def _sizes(call: Call) -> _Sizes:
    heads, heads_k = (call.query[1], call.key[1]) if len(call.query) == 4 else (1, 1)
    rows, head_dim = call.query[-2:]
    return _Sizes(call.query[0], heads, heads_k, rows, call.key[-2], head_dim, call.value[-1])


def _known_wrong(call: Call, sizes: _Sizes, software: Software) -> str | None:
    """Why PyTorch's answer on MPS is known to be wrong, with the issue that says so, or None."""
    version = software.torch
    # With these PyTorch composes plain operations, which its MPS kernels' faults do not touch.
    composed = call.needs_grad or call.dropout_p > 0.0
    fused = _refuse_fused(call, sizes, software) is None
    half = call.dtypes[0] in (torch.float16, torch.bfloat16)
    vector = sizes.is_decode and sizes.head_dim in _VECTOR_HEAD_DIMS
    cases = (
        (
            not fused and sizes.scores > _INDEXABLE_SCORES,
            "more than 2^32 scores come out wrong (#179352, #197636)",
        ),
        (
            version < (2, 12) and not composed and sizes.head_dim != sizes.head_dim_v,
            "before torch 2.12 a value of another head dimension gives a corrupt output (#176767)",
        ),
        (
            version < (2, 13) and not composed and call.mask is not None,
            "before torch 2.13 a row that attn_mask hides comes out as NaN (#156707, #167515)",
        ),
        (
            (2, 8) <= version < (2, 11) and not composed and vector,
            "the decode kernels of torch 2.8 to 2.10 read out of bounds (#163597, #174861)",
        ),
        (
            version < (2, 10) and not composed and not fused and half,
            "before torch 2.10 the scores overflow their half type (#160841)",
        ),
        (
            version < (2, 13) and sizes.heads != sizes.heads_k,
            "before torch 2.13 grouped heads may end the process (#149132)",
        ),
    )
    return next((reason for wrong, reason in cases if wrong), None)


def _refuse_fused(call: Call, sizes: _Sizes, software: Software) -> str | None:
    """Why PyTorch has no fused kernel for the call on its device, or None."""
    if call.dropout_p:
        return "its fused kernels have no dropout"
    if sizes.head_dim != sizes.head_dim_v:
        return "its fused kernels want one head dimension"
    if not call.unit_stride:
        return "its fused kernels want a last stride of 1"
    if call.device == "cpu":
        return "attn_mask needs gradients" if call.mask_needs_grad else None
    if call.device != "mps":
        return f"none is known for {call.device}"
    return _refuse_fused_mps(call, sizes, software)


def _refuse_fused_mps(call: Call, sizes: _Sizes, software: Software) -> str | None:
    if call.needs_grad:
        return "its Metal kernels have no backward"
    if software.macos < (15, 0):
        return "its Metal kernels need macOS 15"
    if call.mask is not None and call.mask[1] not in (torch.bool, call.dtypes[0]):
        return "its Metal kernels want attn_mask in the dtype of query"
    if sizes.is_decode and sizes.head_dim in _VECTOR_HEAD_DIMS:
        needed = (2, 8)
    elif sizes.rows > _DECODE_ROWS and sizes.head_dim in _PREFILL_HEAD_DIMS:
        needed = (2, 13)
    else:
        return (
            f"no Metal kernel of its own has {sizes.rows} rows of head dimension {sizes.head_dim}"
        )
    if software.torch < needed:
        return f"torch {software.torch[0]}.{software.torch[1]} has no fused Metal kernel for it"
    return None
