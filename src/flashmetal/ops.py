"""The operators ``flashmetal::attention`` and ``attention_out``: the boundary of torch.compile.

They are defined through ``torch.library.Library``, whose calls cost less than ``custom_op``'s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .engines import metal, portable, stock
from .gradients import Gradients, QueryRows
from .modes import is_function_transform, is_plain, is_profiled
from .plan import Plan, plan, set_aside
from .problem import AttentionProblem, is_forward_mode
from .reference import attention_reference, dropout_mask
from .request import AttentionInputs, Request
from .settings import choice
from .value_checks import check_lengths, check_out

# The arguments are the fields of AttentionInputs, then those of Request.
_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks, "
    "Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? seqused_k, Tensor? block_table, "
    "Tensor? leftpad_k, Tensor? k_scale, Tensor? v_scale, Tensor? rng_state, "
    "str function, SymInt? max_seqlen_q, SymInt? max_seqlen_k, float? scale, bool causal, "
    "int window_left, int window_right, float softcap, str impl, str? kernel, bool validate, "
    "int num_splits, float dropout_p"
)
_INPUTS = len(AttentionInputs._fields)
_PLAIN = {Tensor, torch.nn.Parameter, type(None)}
_ENGINES = {"portable": portable, "stock": stock}
_BACKWARDS = {
    "portable": portable.backward,
    "stock": stock.backward,
}


def attend(inputs: AttentionInputs, request: Request) -> tuple[Tensor, Tensor]:
    """(o, lse) of one call by an engine, reached through the operator, which autograd records.

    The operator is left out where it adds nothing, and where only the eager reference will do.
    """
    problem = AttentionProblem.of(inputs, request)
    if problem.needs_grad:
        if _is_eager(problem, request):
            return _eager(problem, inputs, request)
        return _attention_op(*inputs, *request)
    if problem.device != "meta" and is_unwatched(inputs):
        return _run(problem, inputs, request, None)
    return _attention_op(*inputs, *request)


def with_rng_state(inputs: AttentionInputs, request: Request) -> AttentionInputs:
    """The inputs of a call with dropout and its random state, drawn where q is."""
    AttentionProblem.of(inputs, request)  # a wrong call draws nothing
    return inputs._replace(rng_state=torch.randint(2**31 - 1, (2,), device=inputs.q.device))


def dropout_signs(inputs: AttentionInputs, request: Request) -> Tensor:
    """(B, Hq, Sq, Sk) in q's dtype: -1 where the call drops an entry, 1 elsewhere."""
    problem = AttentionProblem.of(inputs, request)
    mask = dropout_mask(problem, inputs.rng_state, (problem.seqlen_q, problem.seqlen_k))
    return mask.to(inputs.q.dtype) * 2 - 1


def attention_backward(
    inputs: AttentionInputs, request: Request, rows: QueryRows, wanted: tuple[str, ...]
) -> list[Tensor]:
    """The gradients, by an engine, of a call's inputs that are named, in ``Gradients``' order.

    Where o and lse are of rows that see further keys, these are what the given keys contribute.
    """
    flags = [name in wanted for name in Gradients._fields]
    return _backward_op(*inputs, *request, *rows, flags)


def attend_into(out: Tensor, inputs: AttentionInputs, request: Request) -> None:
    """Attention written into ``out``, (total_q, Hq, Dv) of q's dtype."""
    problem = AttentionProblem.of(inputs, request)
    check_out(out, problem, inputs, request)
    if problem.needs_grad or (torch.is_grad_enabled() and out.requires_grad):
        out.copy_(attend(inputs, request)[0])
    elif problem.device != "meta" and is_unwatched((out, *inputs)):
        _run_into(out, problem, inputs, request)
    else:
        _attention_out_op(out, *inputs, *request)


def is_unwatched(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether the operator would only pass the call on, so that its cost can be saved.

    False under tracing, dispatch modes, function transforms, profilers and for tensor subclasses.
    """
    return is_plain() and not is_profiled() and _PLAIN.issuperset(map(type, tensors))


def _is_eager(problem: AttentionProblem, request: Request) -> bool:
    """Whether a call that needs gradients runs eagerly under autograd, and not by the operator.

    So it is on request, for forward-mode derivatives, under function transforms, and for caches.
    """
    impl, _ = choice(request.impl)
    is_transformed = is_forward_mode() or is_function_transform()
    if impl not in ("auto", "reference"):
        plan(problem, request.impl, request.kernel)  # raises what the engine refuses
        if is_transformed:
            raise NotImplementedError(
                f"{request.function}: impl={impl!r} has no derivatives under torch.func or in "
                'forward mode; pass impl="reference", or "auto" without FLASHMETAL_IMPL'
            )
        return False
    if impl == "reference" or is_transformed:
        return True
    return portable.refuse_backward(problem) is not None


def _eager(
    problem: AttentionProblem, inputs: AttentionInputs, request: Request
) -> tuple[Tensor, Tensor]:
    if not torch.compiler.is_compiling():
        check_lengths(problem, inputs, request)
    with _without_autocast(problem):  # sums are float32 here too
        return attention_reference(problem, inputs)


def _without_autocast(problem: AttentionProblem) -> AbstractContextManager[object]:
    if problem.device != "meta" and torch.is_autocast_enabled(problem.device):
        return torch.autocast(problem.device, enabled=False)
    return nullcontext()


def _attention(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs, request = _named(arguments)
    return _run(AttentionProblem.of(inputs, request), inputs, request, None)


def _attention_out(out: Tensor, *arguments: Any) -> Tensor:
    inputs, request = _named(arguments)
    problem = AttentionProblem.of(inputs, request)
    check_out(out, problem, inputs, request)
    return _run_into(out, problem, inputs, request)


def _run_into(
    out: Tensor, problem: AttentionProblem, inputs: AttentionInputs, request: Request
) -> Tensor:
    # The engines write whole rows: only a contiguous tensor is written to directly.
    o, lse = _run(problem, inputs, request, out if out.is_contiguous() else None)
    if o is not out:
        out.copy_(o)
    torch.autograd.graph.increment_version(out)
    return lse


def _named(arguments: tuple[Any, ...]) -> tuple[AttentionInputs, Request]:
    return AttentionInputs(*arguments[:_INPUTS]), Request(*arguments[_INPUTS:])


def _run(
    problem: AttentionProblem, inputs: AttentionInputs, request: Request, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    if problem.needs_grad:
        raise RuntimeError(
            "flashmetal::attention has no forward-mode derivative; the public functions of "
            "flashmetal have"
        )
    check_lengths(problem, inputs, request)
    laid_out = _laid_out(inputs)
    while True:
        chosen = plan(problem, request.impl, request.kernel)
        try:
            if torch.is_autocast_enabled(problem.device):
                with _without_autocast(problem):
                    o, lse = _serve(chosen, problem, laid_out, out)
            else:
                o, lse = _serve(chosen, problem, laid_out, out)
        except metal.SetAside as refusal:
            if chosen.is_explicit:
                raise
            set_aside(problem, chosen.kernel or "", refusal.reason)
        else:
            return o, lse.contiguous()  # torch's own kernel lays it out as its inputs happen to be


def _serve(
    chosen: Plan, problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    if chosen.engine == "metal":
        return metal.forward(problem, inputs, out, kernel=chosen.kernel or "simdgroup")
    if chosen.engine != "reference":
        return _ENGINES[chosen.engine].forward(problem, inputs, out)
    o, lse = attention_reference(problem, inputs)
    return (o if out is None else out.copy_(o)), lse


def _laid_out(inputs: AttentionInputs) -> AttentionInputs:
    """The inputs as engines take them: q, k, v with last stride 1, vectors contiguous."""
    if _is_laid_out(inputs):
        return inputs
    q, k, v, bias, *others = inputs
    vectors = [None if x is None else x.contiguous() for x in others]
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    laid_out = AttentionInputs(q, k, v, bias, *vectors)
    sinks = laid_out.sinks
    return laid_out._replace(sinks=None if sinks is None else sinks.float())


def _is_laid_out(inputs: AttentionInputs) -> bool:
    for x in inputs[:3]:
        if x.stride()[-1] != 1:
            return False
    for x in inputs[4:]:
        if x is not None and not x.is_contiguous():
            return False
    return inputs.sinks is None or inputs.sinks.dtype == torch.float32


def _attention_backward(*arguments: Any) -> list[Tensor]:
    """The gradients asked for by ``wanted``, flags in the order of ``Gradients``."""
    inputs, request = _named(arguments[: _INPUTS + len(Request._fields)])
    *rows, flags = arguments[_INPUTS + len(Request._fields) :]
    problem = AttentionProblem.of(inputs, request)._replace(needs_grad=True)
    wanted = _wanted(flags)
    call = problem, _laid_out(inputs), QueryRows(*rows), wanted
    while True:
        chosen = plan(problem, request.impl, request.kernel)
        try:
            with _without_autocast(problem):
                found = _gradients(chosen, call)._asdict()
        except metal.SetAside as refusal:
            if chosen.is_explicit:
                raise
            set_aside(problem, "backward", refusal.reason)
        else:
            return [found[name].to(getattr(inputs, name).dtype) for name in wanted]


def _gradients(chosen: Plan, call: tuple[Any, ...]) -> Gradients:
    assert chosen.backward is not None
    if chosen.backward == "reference":
        raise NotImplementedError(
            "flashmetal: the reference has no backward of its own, autograd records its forward; "
            'for this call pass another impl, or "auto" without FLASHMETAL_IMPL=reference'
        )
    if chosen.backward == "metal":
        return metal.backward(*call, kernel=chosen.kernel or "simdgroup")
    return _BACKWARDS[chosen.backward](*call)


def _attention_backward_fake(*arguments: Any) -> list[Tensor]:
    inputs = AttentionInputs(*arguments[:_INPUTS])
    wanted: list[Tensor] = [getattr(inputs, name) for name in _wanted(arguments[-1])]
    return [x.new_empty(x.shape) for x in wanted]


def _wanted(flags: list[bool]) -> tuple[str, ...]:
    return tuple(name for name, flag in zip(Gradients._fields, flags, strict=True) if flag)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_INPUTS], *output)
    ctx.request = inputs[_INPUTS:]


def _backward(ctx: Any, grad_o: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    *inputs, o, lse = ctx.saved_tensors
    flags = [bool(needed) for needed in ctx.needs_input_grad[: len(Gradients._fields)]]
    grad_o = torch.zeros_like(o) if grad_o is None else grad_o
    found = iter(_backward_op(*inputs, *ctx.request, o, lse, grad_o, grad_lse, flags))
    rest = _INPUTS + len(Request._fields) - len(flags)
    return (*[next(found) if flag else None for flag in flags], *[None] * rest)


def _no_double_backward(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError(
        "flashmetal: the gradients of attention have no gradients of their own (create_graph=True, "
        'gradient penalties, Hessians); pass impl="reference", which autograd records in full, or '
        "put sdpa_kernel(SDPBackend.MATH) around a call of scaled_dot_product_attention"
    )


def _attention_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    q, v = arguments[0], arguments[2]
    rows = v.shape[-1] * 2 if v.dtype == torch.uint8 else v.shape[-1]
    return q.new_empty((*q.shape[:-1], rows)), _empty_lse(q)


def _attention_out_fake(out: Tensor, *arguments: Any) -> Tensor:
    del out
    return _empty_lse(arguments[0])


def _empty_lse(q: Tensor) -> Tensor:
    rows = (q.shape[0], q.shape[2], q.shape[1]) if q.ndim == 4 else (q.shape[1], q.shape[0])
    return q.new_empty(rows, dtype=torch.float32)


# The name of the package: the Hugging Face kernels library loads several versions side by side.
_NAMESPACE = __name__.partition(".")[0]
_library = torch.library.Library(_NAMESPACE, "DEF")
_tags = (torch.Tag.pt2_compliant_tag,)
_library.define(f"attention({_ARGUMENTS}) -> (Tensor, Tensor)", tags=_tags)
_library.define(f"attention_out(Tensor(a!) out, {_ARGUMENTS}) -> Tensor", tags=_tags)
_library.define(
    f"attention_backward({_ARGUMENTS}, Tensor o, Tensor lse, Tensor grad_o, Tensor? grad_lse, "
    "bool[] wanted) -> Tensor[]",
    tags=_tags,
)
_library.impl("attention", _attention, "CompositeExplicitAutograd")
_library.impl("attention_out", _attention_out, "CompositeExplicitAutograd")
_library.impl("attention_backward", _attention_backward, "CompositeExplicitAutograd")
# Nothing to record: calls that need gradients never come here, and the default is slow.
_library.impl("attention_out", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake(f"{_NAMESPACE}::attention", _attention_fake, lib=_library)
torch.library.register_fake(f"{_NAMESPACE}::attention_out", _attention_out_fake, lib=_library)
torch.library.register_fake(
    f"{_NAMESPACE}::attention_backward", _attention_backward_fake, lib=_library
)
torch.library.register_autograd(
    f"{_NAMESPACE}::attention", _backward, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd(
    f"{_NAMESPACE}::attention_backward", _no_double_backward, lib=_library
)
_operators = getattr(torch.ops, _NAMESPACE)
_attention_op = _operators.attention.default
_attention_out_op = _operators.attention_out.default
_backward_op = _operators.attention_backward.default
