"""The operator ``flashmetal::cache_append``, which writes into the caches of its arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engines import append as portable
from ..engines import metal
from ..ops import attend, is_unwatched
from ..plan import plan, set_aside
from ..problem import AttentionProblem
from ..request import AttentionInputs, Request
from ..settings import choice
from ..settled import once
from ..value_checks import check_lengths
from .append import AppendInputs, AppendRequest, CacheAppend, check_append_lengths

# The arguments are the fields of AppendInputs, then those of AppendRequest.
_ARGUMENTS = (
    "Tensor? q, Tensor k_new, Tensor v_new, Tensor(a!) k_cache, Tensor(b!) v_cache, "
    "Tensor cache_seqlens, Tensor? block_table, Tensor? cos, Tensor? sin, Tensor(c!)? k_scale, "
    "Tensor(d!)? v_scale, Tensor? rotary_seqlens, Tensor? cu_seqlens_q, Tensor? cu_seqlens_new, "
    "str function, SymInt? max_seqlen_q, SymInt? max_seqlen_new, bool interleaved, "
    "bool rotate_rows, str impl, bool validate"
)
_INPUTS = len(AppendInputs._fields)


def append_to_cache(new: AppendInputs, how: AppendRequest) -> None:
    """Write new keys and values into a cache; everything is checked before anything is written."""
    _append_op(*new, *how)


def append_and_attend(
    new: AppendInputs, how: AppendRequest, inputs: AttentionInputs, request: Request
) -> tuple[Tensor, Tensor]:
    """(o, lse) of a call on a cache into which new keys and values are written first.

    ``inputs`` are those of the attention, whose q is rotated where ``new`` has it and whose keys
    are those after the append. Both halves are checked before anything is written.
    """
    append = CacheAppend.of(new, how)
    inputs = inputs._replace(seqused_k=_used(new))
    problem = AttentionProblem.of(inputs, request)
    if problem.needs_grad:
        raise NotImplementedError(
            f"{request.function}: an append to a cache records no gradients; call under "
            "torch.no_grad(), or detach the inputs"
        )
    if not torch.compiler.is_compiling():
        _check_values(append, new, how)
        check_lengths(problem, inputs, request)
        plan(problem, request.impl, request.kernel)
    is_direct = append.device != "meta" and is_unwatched(new)
    rotated = _run(append, new, how) if is_direct else _append_op(*new, *how)
    if append.rotary_dim and rotated is not None:
        inputs = inputs._replace(q=rotated)
    return attend(inputs, request)


def _used(new: AppendInputs) -> Tensor:
    """The keys of each sequence after an append."""
    before, starts, rows = new.cache_seqlens, new.cu_seqlens_new, new.k_new.shape[1]
    if starts is None:
        return once((before,), ("seqused_k", rows), lambda: before + rows)
    return once((before, starts), "seqused_k", lambda: before + starts.diff())


def _check_values(problem: CacheAppend, inputs: AppendInputs, request: AppendRequest) -> None:
    """Where torch writes, also if that waits for a device: it would take page -1 for the last one.

    The Metal kernel writes nothing on a page of -1 or past the capacity of a sequence.
    """
    if _engine(problem, request.impl) is portable:
        request = request._replace(validate=True)
    check_append_lengths(problem, inputs, request)


def _run(problem: CacheAppend, inputs: AppendInputs, request: AppendRequest) -> Tensor | None:
    try:
        q = _engine(problem, request.impl).append(problem, inputs)
    except metal.SetAside as refusal:  # at its first use: nothing is written yet
        if choice(request.impl)[0] == "metal":
            raise
        set_aside(problem, "append", refusal.reason)
        _check_values(problem, inputs, request)
        q = portable.append(problem, inputs)
    for x in (inputs.k_cache, inputs.v_cache, inputs.k_scale, inputs.v_scale):
        if x is not None:
            torch.autograd.graph.increment_version(x)
    return q


def _engine(problem: CacheAppend, impl: str) -> Any:
    """The engine of an append: Metal on Apple GPUs or where it is asked for, else torch's."""
    impl, _ = choice(impl)
    if impl != "metal" and (impl != "auto" or problem.device != "mps"):
        return portable
    reason = metal.refuse_append(problem)
    if reason is not None and impl == "metal":
        raise NotImplementedError(f"flashmetal: impl='metal' cannot serve this append: {reason}")
    return portable if reason is not None else metal


def _append(*arguments: Any) -> Tensor:
    inputs = AppendInputs(*arguments[:_INPUTS])
    request = AppendRequest(*arguments[_INPUTS:])
    problem = CacheAppend.of(inputs, request)
    _check_values(problem, inputs, request)
    q = _run(problem, inputs, request)
    # An operator may not return its argument: where q is not rotated, the caller has it already.
    return inputs.k_new.new_empty(0) if q is None or q is inputs.q else q


def _append_fake(*arguments: Any) -> Tensor:
    inputs = AppendInputs(*arguments[:_INPUTS])
    if inputs.q is None or inputs.cos is None:
        return inputs.k_new.new_empty(0)
    return torch.empty_like(inputs.q, memory_format=torch.contiguous_format)


_NAMESPACE = __name__.partition(".")[0]  # as in ops
_library = torch.library.Library(_NAMESPACE, "FRAGMENT")
_tags = (torch.Tag.pt2_compliant_tag,)
_library.define(f"cache_append({_ARGUMENTS}) -> Tensor", tags=_tags)
_library.impl("cache_append", _append, "CompositeExplicitAutograd")
_library.impl("cache_append", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake(f"{_NAMESPACE}::cache_append", _append_fake, lib=_library)
_append_op = getattr(torch.ops, _NAMESPACE).cache_append.default
