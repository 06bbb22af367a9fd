"""Flash attention on CUDA, where it gives the contract's answer: torch's, or an installed one.

The forward is that of an installed flash_attn where :mod:`.installed_flash_attn` knows one for the
call and the GPU. All else is torch's:
``aten::_flash_attention_forward`` is FlashAttention-2 as torch builds it, or FlashAttention 3 or 4
where ``torch.nn.attention.activate_flash_attention_impl`` has put an installed one in its place.
Its masks are the contract's. It reads 16 bytes at once wherever a tensor lies, gives rows without a
visible key lse +inf, knows no sinks, and sums the gradient of q in any order unless torch is told
to be deterministic.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import deterministic

from ..gradients import Gradients, QueryRows, sink_gradient
from ..merging import with_sinks
from ..pieces import Piece, cut, visible
from ..problem import AttentionProblem
from ..request import AttentionInputs
from . import installed_flash_attn
from .sequences import is_positive, new_outputs

_DTYPES = (torch.float16, torch.bfloat16)
_LARGEST = 256
_MULTIPLE = 8  # of the head dimension
_LOAD = 16  # bytes
_MOST_ROWS = 16384  # of queries in one launch of the backward
_LEAST_CAPABILITY = 8
_deterministic: Any = deterministic  # its flag is a property of the module
_order = threading.Lock()  # autograd has a thread for each GPU, and the choice is the process's


def capability() -> int:
    """The major number of the least compute capability of the GPUs here, for a problem does not say
    which it is on; without a GPU the least that serves."""
    gpus = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_capability(i)[0] for i in gpus), default=_LEAST_CAPABILITY)


def installed(problem: AttentionProblem) -> str | None:
    """The installed flash_attn that serves a call, or None."""
    return installed_flash_attn.chosen(problem, capability())


def refuse(problem: AttentionProblem) -> str | None:
    """Why no flash attention can serve a call on CUDA, in words, or None."""
    reason = _refuse_all(problem)
    if reason is not None or installed(problem) is not None:
        return reason
    reasons = (
        (problem.softcap != 0.0, "torch's flash attention has no softcap"),
        (problem.alibi is not None, "torch's flash attention has no gradients with ALiBi"),
        (
            capability() < _LEAST_CAPABILITY,
            f"torch's flash attention needs compute capability {_LEAST_CAPABILITY}.0",
        ),
    )
    return next((reason for refused, reason in reasons if refused), None)


def _refuse_all(problem: AttentionProblem) -> str | None:
    """What neither torch's nor any installed flash attention is asked for."""
    head_dim = problem.head_dim
    reasons = (
        (problem.dtype not in _DTYPES, f"torch's flash attention does not take {problem.dtype}"),
        (
            bool(problem.page_size) or (problem.k_format, problem.v_format) != ("dense", "dense"),
            "torch's flash attention reads no paged or quantised cache here",
        ),
        (problem.leftpad_k, "torch's flash attention has no left padding"),
        (
            # The largest score, hidden ones -inf, is found before the scale turns them around.
            not is_positive(problem.scale, torch.float32),
            "flash attention needs a scale above 0",
        ),
        (problem.dropout_p > 0.0, "torch's flash attention drops other entries than philox.py"),
        (problem.bias is not None, "torch's flash attention takes no bias"),
        (
            head_dim != problem.head_dim_v or head_dim > _LARGEST or head_dim % _MULTIPLE != 0,
            f"torch's flash attention needs one head dim, a multiple of {_MULTIPLE} to {_LARGEST}",
        ),
        (
            0 < problem.seqlen_k <= problem.window_right,
            "torch's flash attention takes a right bound of Sk keys or more for none",
        ),
    )
    return next((reason for refused, reason in reasons if refused), None)


def refuse_backward(problem: AttentionProblem) -> str | None:
    """Why torch's cannot give the gradients of a call that is served, or None."""
    if problem.softcap != 0.0 or problem.alibi is not None:
        return "torch's flash attention has no gradients with softcap or ALiBi"
    if problem.seqused_k:
        return "torch's flash attention has no gradients with seqused_k"
    if problem.head_dim + _MULTIPLE > _LARGEST:
        return "torch's flash attention leaves no room for the gradient at lse beside the head"
    return None


def forward(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention by an installed flash_attn or ``aten::_flash_attention_forward``; results as of
    every engine."""
    if _is_empty(inputs):
        o, lse = new_outputs(problem, inputs, out)
        o.zero_()
        lse.fill_(-torch.inf)
    elif (name := installed(problem)) is not None:
        call = _Call.of(problem, inputs)
        q, k, v = call.tensors
        given = inputs._replace(q=q, k=k, v=v)
        o, lse = call.laid_out(*installed_flash_attn.attend(name, problem, given, call.lengths))
    else:
        call = _Call.of(problem, inputs)
        o, lse, *_ = torch.ops.aten._flash_attention_forward(
            *call.tensors,
            *call.lengths,
            0.0,
            call.causal,
            False,
            **call.options,
            seqused_k=call.seqused_k,
        )
        o, lse = call.laid_out(o, lse)
        lse = lse.masked_fill(lse == torch.inf, -torch.inf)
    if inputs.sinks is not None:
        _, lse = with_sinks(o.transpose(-3, -2), lse, inputs.sinks)
    return (o if out is None or o is out else out.copy_(o)), lse


def backward(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows, wanted: tuple[str, ...]
) -> Gradients:
    """Gradients by ``aten::_flash_attention_backward``; arguments are those of every engine."""
    parts = _parts(problem)
    if _is_empty(inputs):
        found = tuple(torch.zeros_like(x) for x in inputs[:3])
    elif len(parts) == 1:
        found = _query_key_value(problem, inputs, rows)
    else:
        found = _sum_of_parts(problem, inputs, rows, parts)
    made = dict(zip("qkv", found, strict=True))
    sinks = None
    if inputs.sinks is not None and "sinks" in wanted:
        sinks = sink_gradient(inputs.sinks, rows.lse, rows.delta())
    grads = {name: x.contiguous() for name, x in made.items() if name in wanted}
    return Gradients(**grads, sinks=sinks)


def _parts(problem: AttentionProblem) -> list[Piece]:
    """A dense call in blocks of queries, else the whole.

    Gradients of q in one order take float32 copies of q, up to one for each multiprocessor of the
    GPU: of a block they are small.
    """
    window = problem.window_left, problem.window_right
    whole = Piece((0, problem.seqlen_q), (0, problem.seqlen_k), *window)
    if problem.layout != "dense" or problem.seqlen_q <= _MOST_ROWS:
        return [whole]
    seen = visible(whole.q, whole.k, problem.seqlen_k - problem.seqlen_q, window)
    return [whole] if seen is None else cut([seen], _MOST_ROWS)


def _sum_of_parts(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows, parts: list[Piece]
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v from those of the parts; of k and v summed in float32."""
    grad_q, *sums = (
        torch.zeros(x.shape, dtype=x.dtype if x is inputs.q else torch.float32, device=x.device)
        for x in inputs[:3]
    )
    for part in parts:
        at, keys = slice(*part.q), slice(*part.k)
        call = problem._replace(
            seqlen_q=part.q[1] - part.q[0],
            seqlen_k=part.k[1] - part.k[0],
            window_left=part.left,
            window_right=part.right,
        )
        q, k, v = inputs.q[:, at], inputs.k[:, keys], inputs.v[:, keys]
        grad_lse = None if rows.grad_lse is None else rows.grad_lse[..., at]
        given = QueryRows(rows.o[:, at], rows.lse[..., at], rows.grad_o[:, at], grad_lse)
        found = _query_key_value(call, inputs._replace(q=q, k=k, v=v), given)
        grad_q[:, at] = found[0]
        for total, share in zip(sums, found[1:], strict=True):
            total[:, keys] += share
    return grad_q, *(x.to(problem.dtype) for x in sums)


def _query_key_value(
    problem: AttentionProblem, inputs: AttentionInputs, rows: QueryRows
) -> tuple[Tensor, ...]:
    """The gradients of q, k and v in one launch."""
    call = _Call.of(problem, inputs)
    tensors = [_aligned(rows.grad_o), *call.tensors, _aligned(rows.o)]
    if rows.grad_lse is not None:
        tensors = _with_grad_lse(tensors, rows.grad_lse)
    # Rows that saw nothing have no probability under this sign of infinity.
    given = rows.lse.masked_fill(rows.lse == -torch.inf, torch.inf).contiguous()
    state = torch.zeros(2, dtype=torch.uint64, device=given.device)
    with _in_one_order():
        found = torch.ops.aten._flash_attention_backward(
            *tensors,
            given,
            *call.lengths,
            0.0,
            call.causal,
            state,
            state[:0],
            **call.options,
        )
    return tuple(x[..., : problem.head_dim] for x in found)


class _Call(NamedTuple):
    """A call as the kernels take it: dense, or packed with its offsets."""

    tensors: tuple[Tensor, Tensor, Tensor]
    lengths: tuple[Tensor | None, Tensor | None, int, int]
    causal: bool
    options: dict[str, Any]
    seqused_k: Tensor | None
    rows: tuple[int, int] | None  # (B, Sq) of a dense call that is served as a packed one

    @classmethod
    def of(cls, problem: AttentionProblem, inputs: AttentionInputs) -> _Call:
        q, k, v = map(_aligned, inputs[:3])
        rows, starts_q, starts_k = None, inputs.cu_seqlens_q, inputs.cu_seqlens_k
        if inputs.seqused_k is not None and problem.layout == "dense":
            # Only packed calls have keys that are not in use.
            rows = problem.batch, problem.seqlen_q
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            entries = torch.arange(problem.batch + 1, dtype=torch.int32, device=q.device)
            starts_q, starts_k = entries * problem.seqlen_q, entries * problem.seqlen_k
        options = {
            "scale": problem.scale,
            "window_size_left": problem.window_left,
            "window_size_right": problem.window_right,
        }
        lengths = starts_q, starts_k, problem.seqlen_q, problem.seqlen_k
        causal = problem.window_right == 0 and problem.window_left < 0
        return cls((q, k, v), lengths, causal, options, inputs.seqused_k, rows)

    def laid_out(self, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        if self.rows is not None:
            batch, seqlen = self.rows
            o = o.view(batch, seqlen, *o.shape[1:])
            lse = lse.view(-1, batch, seqlen).transpose(0, 1)
        return o.contiguous(), lse


def _aligned(x: Tensor) -> Tensor:
    """``x``, or a copy whose rows lie where the kernels' loads of 16 bytes can read them."""
    steps = [stride * x.element_size() for stride in x.stride()[:-1]]
    if x.stride(-1) == 1 and not any(step % _LOAD for step in (x.data_ptr(), *steps)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _is_empty(inputs: AttentionInputs) -> bool:
    return inputs.q.numel() == 0 or inputs.k.numel() == 0


def _with_grad_lse(tensors: list[Tensor], grad_lse: Tensor) -> list[Tensor]:
    """grad_o, q, k, v and o with columns that bring a gradient at lse into rowsum(o * grad_o).

    A float32 number is the sum of three of either half type, as far as their exponents reach.
    """
    grad_o, q, k, v, o = (F.pad(x, (0, _MULTIPLE)) for x in tensors)
    head_dim, rest = o.shape[-1] - _MULTIPLE, -grad_lse.transpose(-1, -2)
    for column in range(head_dim, head_dim + 3):
        o[..., column] = rest
        rest = rest - o[..., column].float()
        grad_o[..., column] = 1.0
    return [grad_o, q, k, v, o]


@contextmanager
def _in_one_order() -> Generator[None]:
    """The same call gives the same bits, whatever the program has chosen for torch."""
    with _order:
        mode, fill = torch.get_deterministic_debug_mode(), _deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        _deterministic.fill_uninitialized_memory = False
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            _deterministic.fill_uninitialized_memory = fill
