"""The small problems on which a variant proves itself: they render to the very same source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...problem import AttentionProblem
from ...request import AttentionInputs
from ...testing import make_inputs
from .variant import Loads

_ROWS, _KEYS = 150, 90  # more than the blocks of any tile, and no multiple of them
# Numbers that the source does not know, like the scale: a verdict is on calls with others too.
_SOFTCAP, _DROPOUT_P = 5.0, 0.3


def small_call(
    problem: AttentionProblem, loads: Loads, group: int = 2
) -> tuple[AttentionProblem, AttentionInputs]:
    """A problem with the features of ``problem``, and tensors where it has them.

    They are aligned as ``loads`` says. ``group`` is the most query heads a kv head.
    """
    rows, keys = min(problem.seqlen_q, _ROWS), min(problem.seqlen_k, _KEYS)
    heads_k = min(problem.heads_k, 2)
    batch = min(problem.batch, 2)
    fields: dict[str, Any] = {
        "batch": batch,
        "seqlen_q": rows,
        "seqlen_k": keys,
        "heads_q": heads_k * min(problem.heads_q // problem.heads_k, group),
        "heads_k": heads_k,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "dtype": problem.dtype,
        # A bound must hide something here as it does there.
        "window_left": min(problem.window_left, max(keys - 2, 0)),
        "window_right": min(problem.window_right, max(rows - 2, 0)),
        "softcap": _SOFTCAP if problem.softcap else 0.0,
        "bias": problem.bias or False,
        "bias_dtype": problem.bias_dtype,
        "alibi": problem.alibi or False,
        "sinks": problem.sinks,
        "page_size": problem.page_size,
        "k_format": problem.k_format,
        "v_format": problem.v_format,
        "dropout_p": _DROPOUT_P if problem.dropout_p else 0.0,
    }
    if problem.layout == "varlen":
        fields |= {
            "lengths_q": (rows, 0, 1)[: batch + 1],
            "lengths_k": (keys, 1, keys)[: batch + 1],
        }
    sequences = len(fields["lengths_q"]) if problem.layout == "varlen" else batch
    if problem.seqused_k:
        fields["seqused_k"] = (keys, *[1] * (sequences - 1))
    if problem.leftpad_k:
        fields["leftpad_k"] = (min(3, keys), *[0] * (sequences - 1))
    small, inputs = make_inputs(**fields)
    kept = {name: getattr(problem, name) for name in ("device", "num_splits", "tf32")}
    small = small._replace(**kept)
    return small, _placed(inputs, loads, problem.device)


def without_spare(
    problem: AttentionProblem, inputs: AttentionInputs
) -> tuple[AttentionProblem, AttentionInputs]:
    """A small call in pages without the rows of a long page that no sequence reaches.

    A cache that is indexed by sequence is one page each: an oracle would pad all keys to that.
    """
    if problem.page_size <= _KEYS:
        return problem, inputs
    keys = {
        name: x[:, :_KEYS]
        for name in ("k", "v", "k_scale", "v_scale")
        if (x := getattr(inputs, name)) is not None
    }
    bias = None if inputs.bias is None else inputs.bias[..., :_KEYS]
    problem = problem._replace(page_size=_KEYS, seqlen_k=_KEYS)
    return problem, inputs._replace(**keys, bias=bias)


def _placed(inputs: AttentionInputs, loads: Loads, device: str) -> AttentionInputs:
    """The tensors on the device; q, k and v no better aligned than the loads need."""
    moved = inputs._make(None if x is None else x.to(device) for x in inputs)
    q, k, v = (
        # Two int4 elements are a byte.
        _offset(x, min(width * x.element_size() // (1 + (x.dtype == torch.uint8)), 16))
        for x, width in zip(moved[:3], loads, strict=True)
    )
    return moved._replace(q=q, k=k, v=v)


def _offset(x: Tensor, alignment: int) -> Tensor:
    """``x`` at an address that is a multiple of ``alignment`` bytes and of no more, up to 16."""
    if alignment == 16 or alignment % x.element_size():
        return x
    shift = alignment // x.element_size()
    buffer = x.new_empty(x.numel() + shift)
    return buffer[shift:].view(x.shape).copy_(x)
