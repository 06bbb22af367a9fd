"""Inputs, error budgets and comparisons for tests of any engine, ours or a user's.

A budget is never set by hand: it is twice the error that an eager run in the inputs' dtype makes
against float64, plus one rounding of the output (Dao's and attention-gym's rule). Where that is
exceeded, it also has what the roundings of float32 scores come to: the largest error of an eager
run with few results may be small by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cache.testing import store
from .gradients import Gradients
from .problem import AttentionProblem
from .reference import attention_reference
from .request import AttentionInputs, Request, with_key_lengths

_ROUNDINGS = 4  # of P, dP, delta and the product, in the gradient of a score
_TF32_EPS = 2.0**-10
# From float32's errors to float64's; twice, as an oracle in float64 errs too.
_SHRINK = 2 * torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
_MARGIN = 3  # rows of NaN around a poisoned tensor; odd, so that alignment is lost too


def make_inputs(
    *,
    batch: int = 1,
    seqlen_q: int = 64,
    seqlen_k: int | None = None,
    heads_q: int = 2,
    heads_k: int | None = None,
    head_dim: int = 64,
    head_dim_v: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scale: float | None = None,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    bias: bool | tuple[bool, bool, bool] = False,
    bias_dtype: torch.dtype | None = None,
    alibi: bool | str = False,
    sinks: bool = False,
    lengths_q: Sequence[int] | None = None,
    lengths_k: Sequence[int] | None = None,
    seqused_k: Sequence[int] | None = None,
    leftpad_k: Sequence[int] | None = None,
    page_size: int = 0,
    k_format: str = "dense",
    v_format: str = "dense",
    dropout_p: float = 0.0,
    strided: bool = False,
    poison: bool = False,
    seed: int = 0,
) -> tuple[AttentionProblem, AttentionInputs]:
    """A problem and normally distributed tensors for it.

    Args:
        bias: True, or which of (batch, head, query) are broadcast; bias_dtype is q's by default.
        alibi: True or "head" for slopes (Hq,), "batch_head" for (B, Hq).
        lengths_q: of packed sequences, with ``lengths_k``; batch and seqlen are ignored.
        seqused_k: keys in use, the first ``leftpad_k`` not; the others are NaN.
        page_size: put k, v into shuffled pages, in formats of :mod:`.cache.formats`.
        strided: q, k and v become views, heads before the sequence, amid NaN, as with ``poison``.
    """
    seqlen_k = seqlen_q if seqlen_k is None else seqlen_k
    shape = _Shape((batch, seqlen_q), (batch, seqlen_k), (batch, heads_q, seqlen_q, seqlen_k))
    if lengths_q is not None:
        shape = _Shape.packed(lengths_q, lengths_k := lengths_k or lengths_q, heads_q, device)
    normal = partial(_normal, torch.Generator().manual_seed(seed), device, dtype)
    q = normal((*shape.rows_q, heads_q, head_dim))
    rows_k = *shape.rows_k, heads_k or heads_q
    k, v = (normal((*rows_k, d)) for d in (head_dim, head_dim_v or head_dim))
    rows = lengths_k or [seqlen_k] * batch
    used = seqused_k or (rows if page_size else None), leftpad_k
    inputs = AttentionInputs(q, k, v, cu_seqlens_q=shape.starts[0], cu_seqlens_k=shape.starts[1])
    inputs = _keys(inputs, used, (k_format, v_format), rows, page_size)
    sizes = shape.in_pages(page_size).sizes
    extras = _extras(normal, sizes, (bias, bias_dtype), alibi, sinks)
    extras["rng_state"] = torch.tensor([seed, 2024], device=device) if dropout_p else None
    inputs = _placed(inputs._replace(**extras), strided, poison)
    options = scale, False, window_left, window_right, softcap
    lengths = (None, None) if lengths_q is None else sizes[2:]
    return _call(inputs, Request("make_inputs", *lengths, *options, dropout_p=dropout_p))


def _call(inputs: AttentionInputs, request: Request) -> tuple[AttentionProblem, AttentionInputs]:
    inputs, request = with_key_lengths(inputs, request)
    return AttentionProblem.of(inputs, request)._replace(tf32=False), inputs


def _keys(
    inputs: AttentionInputs,
    lengths: tuple[Sequence[int] | None, Sequence[int] | None],
    formats: tuple[str, str],
    rows: Sequence[int],
    page_size: int,
) -> AttentionInputs:
    """The inputs with the lengths of the sequences, and k and v in the cache asked for."""
    _poison_unused(inputs.k, inputs.v, lengths, None if inputs.cu_seqlens_k is None else rows)
    used, first = (_ints(x, inputs.q.device) for x in lengths)
    inputs = inputs._replace(seqused_k=used, leftpad_k=first)
    if page_size == 0 and formats == ("dense", "dense"):
        return inputs
    stored = store(inputs.k, inputs.v, formats, rows, page_size)
    return inputs._replace(**stored._asdict())


def _placed(inputs: AttentionInputs, strided: bool, poison: bool) -> AttentionInputs:
    """q, k and v as views amid NaN; a cache lies amid its own poison."""
    inputs = inputs._replace(q=_place(inputs.q, strided, poison))
    if any(x is not None for x in (inputs.block_table, inputs.k_scale, inputs.v_scale)):
        return inputs
    k, v = (_place(x, strided, poison) for x in (inputs.k, inputs.v))
    return inputs._replace(k=k, v=v)


class _Shape(NamedTuple):
    rows_q: tuple[int, ...]  # the dimensions of q before (heads, head_dim)
    rows_k: tuple[int, ...]
    sizes: tuple[int, int, int, int]  # batch, heads_q, largest Sq, largest Sk
    starts: tuple[Tensor | None, Tensor | None] = (None, None)

    def in_pages(self, page_size: int) -> _Shape:
        """With the keys that whole pages hold; 0 is no paging."""
        keys = self.sizes[3] if page_size == 0 else -(-self.sizes[3] // page_size) * page_size
        return self._replace(sizes=(*self.sizes[:3], keys))

    @classmethod
    def packed(
        cls, lengths_q: Sequence[int], lengths_k: Sequence[int], heads_q: int, device: str
    ) -> _Shape:
        sizes = len(lengths_q), heads_q, max(lengths_q), max(lengths_k)
        starts = _offsets(lengths_q, device), _offsets(lengths_k, device)
        return cls((sum(lengths_q),), (sum(lengths_k),), sizes, starts)


def _ints(values: Sequence[int] | None, device: torch.device) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int32, device=device)


def _offsets(lengths: Sequence[int], device: str) -> Tensor:
    starts = [sum(lengths[:b]) for b in range(len(lengths) + 1)]
    return torch.tensor(starts, dtype=torch.int32, device=device)


def _normal(
    generator: torch.Generator, device: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    x = torch.randn(shape, generator=generator, device="cpu")
    return x.to(device=device, dtype=dtype)


def _extras(
    normal: Callable[[tuple[int, ...]], Tensor],
    sizes: tuple[int, int, int, int],
    bias: tuple[bool | tuple[bool, bool, bool], torch.dtype | None],
    alibi: bool | str,
    sinks: bool,
) -> dict[str, Tensor | None]:
    """bias, alibi_slopes and sinks; ``bias`` is what is broadcast and its dtype."""
    additive = slopes = logits = None
    which, dtype = bias
    if which:
        broadcast = which if isinstance(which, tuple) else (False, False, False)
        rows = [1 if b else size for b, size in zip(broadcast, sizes, strict=False)]
        additive = normal((*rows, sizes[3]))
        additive = additive.to(dtype or additive.dtype)
    if alibi:
        slopes = normal(sizes[:2] if alibi == "batch_head" else sizes[1:2]).float().abs()
    if sinks:
        logits = normal(sizes[1:2]).float()
    return {"bias": additive, "alibi_slopes": slopes, "sinks": logits}


def _poison_unused(
    k: Tensor,
    v: Tensor,
    used: tuple[Sequence[int] | None, Sequence[int] | None],
    lengths: Sequence[int] | None,
) -> None:
    """NaN in the rows before leftpad_k and after seqused_k, as a fresh cache may hold."""
    ends, firsts = used
    for x in (k, v):
        sequences = x if lengths is None else torch.split(x, list(lengths))
        for b, rows in enumerate(sequences):
            if firsts is not None:
                rows[: firsts[b]] = math.nan
            if ends is not None:
                rows[ends[b] :] = math.nan


def _place(x: Tensor, strided: bool, poison: bool) -> Tensor:
    """``x`` as a view into a larger tensor of NaN."""
    if not (strided or poison):
        return x
    if strided:
        x = x.transpose(-3, -2)
    rows = -2 if strided else -3
    shape = list(x.shape)
    shape[rows] += 2 * _MARGIN
    if strided:
        shape[-1] += 2 * _MARGIN
    view = x.new_full(shape, math.nan).narrow(rows, _MARGIN, x.shape[rows])
    if strided:
        view = view.narrow(-1, _MARGIN, x.shape[-1])
    view.copy_(x)
    return view.transpose(-3, -2) if strided else view


class _TF32Products(TorchDispatchMode):
    """Products take 10 bits of mantissa of their float32 operands, in autograd's backward too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            args = [
                (x.view(torch.int32) & -0x2000).view(x.dtype) if x.dtype == torch.float32 else x
                for x in args
            ]
        return func(*args, **(kwargs or {}))


def _products(problem: AttentionProblem) -> AbstractContextManager[object]:
    """How an eager run multiplies."""
    return _TF32Products() if problem.tf32 else nullcontext()


def error_budget(eager: Tensor, exact: Tensor) -> float:
    """The largest error allowed beside ``exact``, a float64 result.

    ``eager`` is the result of the same call in the dtype under test. Entries that are infinite in
    ``exact`` are left out: they are compared for equality.
    """
    finite = torch.isfinite(exact)
    if not bool(finite.any()):
        return 0.0
    exact, eager_error = exact[finite], (eager.double() - exact)[finite].abs().max()
    rounding = torch.finfo(eager.dtype).eps * exact.abs().max()
    return float(2 * (eager_error + rounding))


def assert_matches_reference(
    o: Tensor, lse: Tensor, problem: AttentionProblem, inputs: AttentionInputs
) -> None:
    """Compare results with the float64 oracle, each within its budget.

    Shapes, dtypes, contiguity of o, and where lse is -inf must be equal; nothing may be NaN.
    """
    inputs = inputs._make(None if x is None else x.cpu() for x in inputs)  # MPS has no float64
    with torch.no_grad():
        exact = attention_reference(problem, inputs, compute_dtype=torch.float64)
        with _products(problem):
            eager = attention_reference(problem, inputs)
        if problem.dtype == torch.float64:
            eager = _scaled_down(problem, inputs, exact[0]), eager[1]
    assert o.dtype == problem.dtype, f"o is {o.dtype}, expected {problem.dtype}"
    assert o.is_contiguous(), f"o is not contiguous, its strides are {o.stride()}"
    assert lse.dtype == torch.float32, f"lse is {lse.dtype}, expected torch.float32"
    for each, (name, found) in enumerate({"o": o, "lse": lse}.items()):
        budget = error_budget(eager[each], exact[each])
        more = partial(_error_of_scores, problem, inputs, each)
        _compare(name, found.cpu(), exact[each], budget, problem, more)


@torch.no_grad()
def _error_of_scores(problem: AttentionProblem, inputs: AttentionInputs, result: int) -> float:
    """Twice what o (0) or lse (1) errs by if probabilities and all terms of scores are rounded."""
    if problem.k_format != "dense" or problem.v_format != "dense":
        return 0.0
    keys = problem._replace(head_dim_v=problem.head_dim)
    terms, _ = attention_reference(keys, inputs._replace(v=inputs.k.abs()), torch.float64)
    roundings = 1 + abs(problem.scale) * (inputs.q.double().abs() * terms).sum(-1, keepdim=True)
    if result == 1:
        return 2 * torch.finfo(torch.float32).eps * float(roundings.max())
    values, _ = attention_reference(problem, inputs._replace(v=inputs.v.abs()), torch.float64)
    eps = torch.finfo(torch.promote_types(problem.dtype, torch.float32)).eps
    return 2 * eps * float((roundings * values).max())


def _scaled_down(problem: AttentionProblem, inputs: AttentionInputs, exact: Tensor) -> Tensor:
    """A float64 run has no error against itself: float32's, in float64's precision."""
    q, k, v = (x.float() if x.dtype == torch.float64 else x for x in inputs[:3])
    single = problem._replace(dtype=torch.float32)
    o, _ = attention_reference(single, inputs._replace(q=q, k=k, v=v))
    return exact + (o.double() - exact) * _SHRINK


def differentiable(inputs: AttentionInputs) -> tuple[str, ...]:
    """The names of the inputs of a call that have gradients."""
    return tuple(name for name in Gradients._fields if getattr(inputs, name) is not None)


def make_output_gradients(
    o: Tensor, lse: Tensor, seed: int = 0, through_lse: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Normally distributed gradients at o and lse, as a backward takes them."""
    generator = torch.Generator().manual_seed(seed + 1)
    grad_o = _normal(generator, str(o.device), o.dtype, tuple(o.shape))
    grad_lse = _normal(generator, str(lse.device), lse.dtype, tuple(lse.shape))
    return grad_o, grad_lse if through_lse else None


def assert_gradients_match_reference(
    found: Gradients,
    problem: AttentionProblem,
    inputs: AttentionInputs,
    grad_o: Tensor,
    grad_lse: Tensor | None,
) -> None:
    """Compare the gradients that are there with the float64 oracle's, each within its budget.

    The gradient of a score is P * (dP - delta). Where terms cancel their rounding remains, so a
    budget also has a rounding each of P, dP, delta and the product, of what the terms add up to.
    """
    inputs = inputs._make(None if x is None else x.cpu() for x in inputs)
    names = tuple(name for name, x in found._asdict().items() if x is not None)
    grad_o, grad_lse = grad_o.cpu(), None if grad_lse is None else grad_lse.cpu()
    exact = _oracle_gradients(problem, inputs, names, grad_o, grad_lse)
    sizes, largest_lse = _sizes_of_terms(problem, inputs, names, grad_o, grad_lse)
    low = problem, inputs
    if problem.dtype == torch.float64:
        low = _single(problem, inputs)
    with _products(problem):
        eager = _reference_gradients(*low, names, grad_o.to(low[0].dtype), grad_lse, None)
    for name, right, rough, size in zip(names, exact, eager, sizes, strict=True):
        actual: Tensor = getattr(found, name).cpu()
        vector = name in ("alibi_slopes", "sinks")
        expected = torch.float32 if vector else getattr(inputs, name).dtype
        assert actual.dtype == expected, f"{name}'s gradient is {actual.dtype}, not {expected}"
        assert actual.is_contiguous(), f"{name}'s gradient is not contiguous"
        # However fine the gradient's own dtype is, it is made of an o that was rounded to q's.
        coarser = max(problem.dtype, expected, key=lambda dtype: torch.finfo(dtype).eps)
        if coarser == torch.float64:
            rough = right + (rough.double() - right) * _SHRINK
        label = f"the gradient of {name}"
        eps = _TF32_EPS if problem.tf32 else torch.finfo(coarser).eps
        budget = error_budget(rough.to(coarser), right)
        terms = 2 * float(size.abs().max()) if size.numel() else 0.0
        # P is made again from lse, where a rounding is a relative one of P.
        eps_of_lse = torch.finfo(torch.promote_types(problem.dtype, torch.float32)).eps
        more = partial(float, terms * eps_of_lse * largest_lse)
        _compare(label, actual, right, budget + _ROUNDINGS * eps * terms, problem, more)


def _single(
    problem: AttentionProblem, inputs: AttentionInputs
) -> tuple[AttentionProblem, AttentionInputs]:
    """A float64 call in float32."""
    inputs = inputs._make(
        x.float() if x is not None and x.dtype == torch.float64 else x for x in inputs
    )
    return problem._replace(dtype=torch.float32), inputs


def _oracle_gradients(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    names: tuple[str, ...],
    grad_o: Tensor,
    grad_lse: Tensor | None,
) -> list[Tensor]:
    doubled = {n: getattr(inputs, n).double() for n in differentiable(inputs)}
    inputs, grad_o = inputs._replace(**doubled), grad_o.double()
    return _reference_gradients(problem, inputs, names, grad_o, grad_lse, torch.float64)


def _sizes_of_terms(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    names: tuple[str, ...],
    grad_o: Tensor,
    grad_lse: Tensor | None,
) -> tuple[list[Tensor], float]:
    """What the terms of each gradient add up to where dP and delta are positive and kept apart.

    And the largest magnitude of lse.
    """
    inputs, grad_o = inputs._replace(v=inputs.v.abs()), grad_o.abs().double()
    o, lse = attention_reference(problem, inputs, torch.float64)
    instead = (o * grad_o).sum(-1).transpose(-2, -1)  # a gradient at the lse that makes delta 0
    sizes = _oracle_gradients(problem, inputs, names, grad_o, instead)
    if "sinks" in names:
        negative = None if grad_lse is None else -grad_lse.abs()
        sizes[names.index("sinks")] = _oracle_gradients(
            problem, inputs, ("sinks",), grad_o, negative
        )[0]
    finite = lse[torch.isfinite(lse)].abs()
    return sizes, float(finite.max()) if finite.numel() else 0.0


def _reference_gradients(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    names: tuple[str, ...],
    grad_o: Tensor,
    grad_lse: Tensor | None,
    compute_dtype: torch.dtype | None,
) -> list[Tensor]:
    """By autograd through the reference; zeros where it does not reach."""
    leaves: list[Tensor] = [getattr(inputs, name).detach().requires_grad_() for name in names]
    changed = inputs._replace(**dict(zip(names, leaves, strict=True)))
    with torch.enable_grad():
        o, lse = attention_reference(problem, changed, compute_dtype)
    outputs, grads = (o, lse), (grad_o, torch.zeros_like(lse))
    if grad_lse is not None:
        grads = grad_o, grad_lse.to(lse.dtype)
    if not o.requires_grad:
        # Below an operator nothing is recorded, and zeros would be taken for the gradients.
        assert all((x * 1).requires_grad for x in leaves), "autograd does not record here"
        return [torch.zeros_like(x) for x in leaves]
    kept = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if x.requires_grad]
    outputs, grads = zip(*kept, strict=True)
    return list(
        torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
    )


def _compare(
    name: str,
    found: Tensor,
    exact: Tensor,
    budget: float,
    problem: AttentionProblem,
    more: Callable[[], float] = float,
) -> None:
    """``more`` says what else the budget has, where it is exceeded without that."""
    assert found.shape == exact.shape, (
        f"{name} is {tuple(found.shape)}, expected {tuple(exact.shape)}\n{problem}"
    )
    if exact.numel() == 0:
        return
    assert not bool(exact.isnan().any()), f"the exact {name} holds NaN\n{problem}"
    # Equal infinities have no difference; a NaN or another infinity is an infinite error.
    error = torch.where(found == exact, 0.0, (found.double() - exact).abs())
    error = error.nan_to_num(nan=math.inf)
    worst = int(error.argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
    if float(error[where]) > budget:
        budget += more()
    assert float(error[where]) <= budget, (
        f"{name} is wrong at {where}: got {float(found[where])!r}, "
        f"expected {float(exact[where])!r}, error {float(error[where]):.3e}, budget {budget:.3e}; "
        f"{int((error > budget).sum())} of {error.numel()} entries are off\n{problem}"
    )
