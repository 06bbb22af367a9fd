"""One call of the contract spread over ranks, and its results put together again."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from flashmetal import distributed
from flashmetal.gradients import Gradients
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    make_inputs,
    make_output_gradients,
)

from .changes import CHANGES
from .processes import Processes


class Case(NamedTuple):
    """What runs: the method "ring" or "ulysses", over ``size`` of the ranks.

    ``call`` has the arguments of make_inputs.
    ``change`` names one of :data:`.changes.CHANGES`, under which the ranks then run.
    """

    attention: str
    size: int
    sharding: str
    call: dict[str, Any]
    change: str | None = None


class Share(NamedTuple):
    """What one rank holds of the results; rows index the whole sequences."""

    rows_q: Tensor
    rows_k: Tensor
    o: Tensor
    lse: Tensor
    grads: dict[str, Tensor]


def check(processes: Processes, case: Case) -> list[Share]:
    """Compare forward and backward over ranks with the oracle, each within its budget."""
    shares = processes.run(attend_to_share, case)
    problem, inputs = make_inputs(**case.call)
    for first in range(0, len(shares), case.size):
        o, lse, grads = whole(shares[first : first + case.size], case)
        assert_matches_reference(o, lse, problem, inputs)
        grad_o, grad_lse = make_output_gradients(o, lse)
        assert_gradients_match_reference(grads, problem, inputs, grad_o, grad_lse)
    return shares


def attend_to_share(rank: int, case: Case) -> Share:
    """Run by each rank."""
    with CHANGES[case.change](rank) if case.change else nullcontext():
        return _attend(case)


def _attend(case: Case) -> Share:
    _, inputs = make_inputs(**case.call)
    group = mesh(case.size)
    packed = inputs.cu_seqlens_q is not None
    lengths = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    seqlens = lengths if packed else (inputs.q.shape[1], inputs.k.shape[1])
    device = inputs.q.device
    rows_q, rows_k = (
        distributed.local_rows(x, group, sharding=case.sharding, device=device) for x in seqlens
    )
    shards = [
        x.index_select(-3, rows).detach().requires_grad_()
        for x, rows in zip(inputs[:3], (rows_q, rows_k, rows_k), strict=True)
    ]
    given = {"alibi_slopes": inputs.alibi_slopes, "s_aux": inputs.sinks}
    vectors = {name: x.detach().requires_grad_() for name, x in given.items() if x is not None}
    options = {
        "softmax_scale": case.call.get("scale"),
        "window_size": (case.call.get("window_left", -1), case.call.get("window_right", -1)),
        "softcap": case.call.get("softcap", 0.0),
        "sharding": case.sharding,
        "group": group,
        "method": case.attention,
        "return_lse": True,
    }
    function = distributed.flash_attn_varlen_func if packed else distributed.flash_attn_func
    sizes = lengths if packed else ()
    if not packed:
        options |= {"seqlen_q": seqlens[0], "seqlen_k": seqlens[1]}
    o, lse = function(*shards, *sizes, **options, **vectors)
    grad_o, grad_lse = _output_gradients(inputs.q, inputs.v)
    torch.autograd.backward(
        (o, lse), (grad_o.index_select(-3, rows_q), grad_lse.index_select(-1, rows_q))
    )
    leaves = {**dict(zip("qkv", shards, strict=True)), **vectors}
    grads = {name: x.grad.cpu() for name, x in leaves.items()}
    return Share(rows_q.cpu(), rows_k.cpu(), o.detach().cpu(), lse.detach().cpu(), grads)


def whole(shares: list[Share], case: Case) -> tuple[Tensor, Tensor, Gradients]:
    """The results of all ranks of a group as one machine would have them."""
    _, inputs = make_inputs(**{**case.call, "device": "cpu"})
    grad_o, grad_lse = _output_gradients(inputs.q, inputs.v)
    o, lse = torch.full_like(grad_o, torch.nan), torch.full_like(grad_lse, torch.nan)
    grads = {name: torch.full_like(x, torch.nan) for name, x in zip("qkv", inputs[:3], strict=True)}
    for share in shares:
        o.index_copy_(o.ndim - 3, share.rows_q, share.o)
        lse.index_copy_(lse.ndim - 1, share.rows_q, share.lse)
        for name, rows in (("q", share.rows_q), ("k", share.rows_k), ("v", share.rows_k)):
            grads[name].index_copy_(grads[name].ndim - 3, rows, share.grads[name])
    names = {"alibi_slopes": "alibi_slopes", "s_aux": "sinks"}
    for name in names.keys() & shares[0].grads.keys():
        grads[names[name]] = torch.stack([share.grads[name] for share in shares]).sum(0)
    return o, lse, Gradients(**{name: x.contiguous() for name, x in grads.items()})


def _output_gradients(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    o = q.new_empty((*q.shape[:-1], v.shape[-1]))
    lse = q.new_empty((*q.shape[:-3], q.shape[-2], q.shape[-3]), dtype=torch.float32)
    grad_o, grad_lse = make_output_gradients(o, lse)
    assert grad_lse is not None
    return grad_o, grad_lse


@lru_cache
def mesh(size: int) -> DeviceMesh | None:
    """Of four ranks: all of them, or this rank's half."""
    if size == 4:
        return None
    return init_device_mesh("cpu", (4 // size, size), mesh_dim_names=("data", "context"))["context"]
