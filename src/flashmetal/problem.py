"""One attention call, described without its tensors: every error a user can make is raised here."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .cache.formats import stored_format
from .checks import (
    Facts,
    check_extras,
    check_layout,
    check_query_key_value,
    check_request,
    public_name,
    row_length,
)
from .request import AttentionInputs, Request

_forward_ad: Any = forward_ad  # its current level has no public name


class AttentionProblem(NamedTuple):
    """A checked call in canonical form: hashable, so that plans and kernels are cached by it.

    ``seqlen_q`` and ``seqlen_k`` are the largest lengths of a packed batch. A window bound is -1
    where it hides nothing; causal is ``window_right == 0``. ``bias`` says which of (batch, head,
    query) are broadcast; ``alibi`` is "head" or "batch_head"; ``softcap`` 0 is none.

    ``page_size`` 0 is no paging; else ``seqlen_k`` is what a row of the block table can hold,
    whatever the lengths. ``k_format`` and ``v_format`` are of :mod:`.cache.formats`.
    ``num_splits`` 0 leaves the split over keys to the plan. ``tf32`` lets tensor operations round
    the float32 operands of products to TF32, as ``torch.set_float32_matmul_precision`` allows.
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
    tf32: bool = False

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
        traced = torch.compiler.is_compiling()
        # What runs a compiled call asks for itself.
        tf32 = not traced and getattr(inputs.q, "dtype", None) == torch.float32 and allows_tf32()
        modes = is_forward_mode(), torch.is_grad_enabled(), tf32
        if not traced:
            try:
                return _cached_problem(facts, request, modes)
            except TypeError:
                pass  # a wrong argument, told below, or the symbolic sizes of a traced graph
        return _problem(facts, request, modes)


def allows_tf32() -> bool:
    """Whether the user lets products of float32 round their operands to TF32.

    By ``torch.set_float32_matmul_precision``, unless torch's newer name for all backends says no.
    """
    try:
        if torch.get_float32_matmul_precision() == "highest":
            return False
    except RuntimeError:  # it was set for one of torch's backends alone
        return False
    return getattr(torch.backends, "fp32_precision", "none") != "ieee"


def is_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken."""
    return bool(_forward_ad._current_level >= 0)


_PUBLIC_NAMES = tuple(["s_aux" if x == "sinks" else x for x in AttentionInputs._fields])


def _problem(
    facts: tuple[Facts | type | None, ...], request: Request, modes: tuple[bool, bool, bool]
) -> AttentionProblem:
    """The checked problem; ``modes``: forward and reverse autograd record, TF32 is allowed."""
    function = request.function
    given: dict[str, Facts] = {}
    for name, fact in zip(_PUBLIC_NAMES, facts, strict=True):
        if isinstance(fact, type):
            name = public_name(function, name)
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
        tf32=modes[2],
    )


_cached_problem = lru_cache(maxsize=4096)(_problem)
