"""Which engine would serve a call, and why the others would not."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .engines import metal
from .plan import Plan, plan
from .problem import AttentionProblem
from .request import AttentionInputs, make_request, with_key_lengths


class Explanation(NamedTuple):
    """The answer of :func:`explain`; prints as a few lines of text.

    ``tiles`` are those of the Metal kernels that serve, and where they come from.
    """

    problem: AttentionProblem
    plan: Plan
    tiles: tuple[str, ...] = ()

    def __str__(self) -> str:
        kernel = f", kernel {self.plan.kernel}" if self.plan.kernel else ""
        lines = [f"engine {self.plan.engine}{kernel}: {self.plan.why}"]
        if self.plan.backward:
            lines.append(f"  gradients by {self.plan.backward}")
        lines += [f"  {tile}" for tile in self.tiles]
        lines += [f"  not {engine}: {reason}" for engine, reason in self.plan.refusals]
        return "\n".join(lines)


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | Tensor | None = None,
    max_seqlen_k: int | Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Explanation:
    """The plan for a call, which is not run.

    The arguments are those of ``flash_attn_varlen_func``, or without the lengths those of
    ``flash_attn_func``, and so are the errors.

    >>> print(flashmetal.explain(q, k, v, causal=True))
    """
    function = "explain"
    del deterministic, return_attn_probs, return_lse  # no engine depends on them
    inputs = AttentionInputs(
        q, k, v, bias, alibi_slopes, s_aux, cu_seqlens_q, cu_seqlens_k, seqused_k, block_table
    )
    inputs = inputs._replace(leftpad_k=leftpad_k, k_scale=k_scale, v_scale=v_scale)
    options = softmax_scale, causal, window_size, softcap, impl, kernel
    packed = any(x is not None for x in (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k))
    lengths = (max_seqlen_q, max_seqlen_k) if packed else None
    request = make_request(function, dropout_p, *options, lengths, validate)
    problem = AttentionProblem.of(*with_key_lengths(inputs, request))
    chosen = plan(problem, impl, kernel)
    return Explanation(problem, chosen, tiles_of(problem, chosen))


def tiles_of(problem: AttentionProblem, chosen: Plan) -> tuple[str, ...]:
    """A line for each tile of the Metal kernels of a plan."""
    if chosen.engine != "metal":
        return ()
    tiles = metal.tiles_of(problem, chosen.kernel or "", chosen.backward == "metal")
    return tuple(f"tile of {name}: {choice}" for name, choice in tiles.items())
