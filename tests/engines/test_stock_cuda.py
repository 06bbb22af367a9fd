"""Torch's flash attention on CUDA against the oracle.

Without a GPU a stand-in takes the place of the operators, with what they do otherwise than the
contract; FLASHMETAL_TEST_DEVICE=cuda runs the same tests on the real ones.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmetal.engines import stock, stock_cuda
from flashmetal.gradients import QueryRows
from flashmetal.plan import plan
from flashmetal.problem import AttentionProblem
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import FEATURES, SHAPE

HALVES = (torch.float16, torch.bfloat16)
REFUSED = {"softcap", "alibi", "bias", "head_dim_v"}
SERVED = [
    name
    for name, call in FEATURES.items()
    if not REFUSED & set(call) and not call.get("head_dim", 8) % 8
]


class Rows:
    """One sequence's scores as the operators see them: masked, in float32."""

    def __init__(
        self, q: Tensor, k: Tensor, options: dict[str, Any], causal: bool, max_k: int
    ) -> None:
        self.q, self.k = (x.float().transpose(0, 1) for x in (q, k))
        self.k = self.k.repeat_interleave(q.shape[1] // k.shape[1], 0)
        self.scale = options["scale"]
        s = self.q @ self.k.mT * self.scale
        distance = torch.arange(k.shape[0]) - torch.arange(q.shape[0])[:, None]
        distance = distance - (k.shape[0] - q.shape[0])
        left, right = options["window_size_left"], options["window_size_right"]
        hidden = (left >= 0) & (distance < -left)
        if causal or 0 <= right < max_k:
            hidden = hidden | (distance > (0 if causal else right))
        self.s = s.masked_fill(hidden, -torch.inf)


def sequences(batch: int, starts: Any, used: Tensor | None = None) -> Iterator[Any]:
    """Where the rows of q, of k and of lse of each sequence are."""
    if starts[0] is None:
        for b in range(batch):
            yield (b, slice(None)), (b, slice(None)), (b, slice(None), slice(None))
        return
    for b, (rows, keys) in enumerate(
        zip(pairwise(starts[0].tolist()), pairwise(starts[1].tolist()), strict=True)
    ):
        end = keys[1] if used is None else keys[0] + int(used[b])
        yield slice(*rows), slice(keys[0], end), (slice(None), slice(*rows))


def check_tensors(*tensors: Tensor) -> None:
    for x in tensors:
        assert x.dtype in HALVES
        assert x.stride(-1) == 1
        assert not (x.data_ptr() | 2 * math.gcd(*x.stride()[:-1])) % 16
        assert x.shape[-1] % 8 == 0
        assert x.numel()


def flash_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts_q: Any,
    starts_k: Any,
    max_q: int,
    max_k: int,
    dropout_p: float,
    causal: bool,
    debug: bool,
    **options: Any,
) -> tuple[Tensor, ...]:
    check_tensors(q, k, v)
    del max_q, dropout_p, debug
    o = torch.empty_like(q)
    heads = *q.shape[:-3], q.shape[-2], q.shape[-3]
    lse = q.new_empty(heads, dtype=torch.float32)
    used = options.get("seqused_k")
    for rows, keys, at in sequences(len(q), (starts_q, starts_k), used):
        seen = Rows(q[rows], k[keys], options, causal, max_k)
        lse[at] = torch.logsumexp(seen.s, -1)
        p = (seen.s - lse[at][..., None]).exp().nan_to_num(0.0)
        values = v[keys].float().transpose(0, 1).repeat_interleave(q.shape[-2] // k.shape[-2], 0)
        o[rows] = (p @ values).transpose(0, 1).to(q.dtype)
    empty = q.new_empty(0)
    return o, lse.masked_fill(lse == -torch.inf, torch.inf), empty, empty, empty


def flash_backward(
    grad_o: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    starts_q: Tensor | None,
    starts_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    causal: bool,
    *state: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check_tensors(grad_o, q, k, v, o)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert lse.is_contiguous()
    assert not (lse == -torch.inf).any()
    del max_q, dropout_p, state
    grads = [torch.zeros(x.shape) for x in (q, k, v)]
    groups = q.shape[-2] // k.shape[-2]
    for rows, keys, at in sequences(len(q), (starts_q, starts_k)):
        seen = Rows(q[rows], k[keys], options, causal, max_k)
        p = (seen.s - lse[at][..., None]).exp()
        go, oo = (x[rows].float().transpose(0, 1) for x in (grad_o, o))
        values = v[keys].float().transpose(0, 1).repeat_interleave(groups, 0)
        ds = p * (go @ values.mT - (go * oo).sum(-1, keepdim=True)) * seen.scale
        by_head = ds @ seen.k, ds.mT @ seen.q, p.mT @ go
        for grad, found, where in zip(grads, by_head, (rows, keys, keys), strict=True):
            found = found.unflatten(0, (-1, 1 if grad is grads[0] else groups)).sum(1)
            grad[where] = found.transpose(0, 1)
    return tuple(x.to(q.dtype) for x in grads)


@pytest.fixture(autouse=True)
def operators() -> Iterator[None]:
    """The stand-ins, for tensors of the CPU; a GPU has operators of its own."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", flash_forward, "CPU")
    library.impl("_flash_attention_backward", flash_backward, "CPU")
    yield
    library._destroy()


def on_cuda(problem: AttentionProblem) -> AttentionProblem:
    return problem._replace(device="cuda")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("feature", SERVED)
def test_forward_and_backward(feature: str, dtype: torch.dtype) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES[feature]}, dtype=dtype)
    served = on_cuda(problem)
    assert stock.refuse(served) is None
    o, lse = stock.forward(served, inputs)
    assert_matches_reference(o, lse, problem, inputs)
    if stock.refuse_backward(served) is not None:
        assert problem.seqused_k
        return
    for through_lse in (False, True):
        grads = make_output_gradients(o, lse, through_lse=through_lse)
        call = served, inputs, QueryRows(o, lse, *grads), differentiable(inputs)
        found, again = stock.backward(*call), stock.backward(*call)
        assert_gradients_match_reference(found, problem, inputs, *grads)
        assert all(torch.equal(x, y) for x, y in zip(found, again, strict=True) if x is not None)


CUT = ["batch", "causal", "causal, more rows than keys", "sinks", "multi-query", "left window"]
CUT += ["right window", "window", "window of one key", "window, more rows than keys", "varlen"]


@pytest.mark.parametrize("feature", CUT)
def test_gradients_of_many_rows_come_in_parts(
    feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []

    def counted(call: AttentionProblem, *others: Any) -> Any:
        launched.append(call.seqlen_q)
        return launch(call, *others)

    launch = stock_cuda._query_key_value
    monkeypatch.setattr(stock_cuda, "_MOST_ROWS", 16)
    monkeypatch.setattr(stock_cuda, "_query_key_value", counted)
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES[feature]}, dtype=torch.bfloat16)
    o, lse = stock.forward(on_cuda(problem), inputs)
    grads = make_output_gradients(o, lse)
    rows = QueryRows(o, lse, *grads)
    found = stock.backward(on_cuda(problem), inputs, rows, differentiable(inputs))
    assert_gradients_match_reference(found, problem, inputs, *grads)
    if problem.layout == "dense":
        assert len(launched) > 1
        assert max(launched) <= 16


@pytest.mark.parametrize("feature", ["causal", "varlen", "no keys but sinks"])
def test_out_is_written_in_place(feature: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES[feature]}, dtype=torch.float16)
    expected, _ = stock.forward(on_cuda(problem), inputs)
    out = torch.full_like(expected, torch.nan)
    assert stock.forward(on_cuda(problem), inputs, out)[0] is out
    assert torch.equal(out, expected)


def test_the_programs_choice_of_determinism_is_left_as_it_is() -> None:
    problem, inputs = make_inputs(**SHAPE, dtype=torch.float16)
    o, lse = stock.forward(on_cuda(problem), inputs)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    for mode in (0, 1, 2):
        torch.set_deterministic_debug_mode(mode)
        stock.backward(on_cuda(problem), inputs, QueryRows(o, lse, o), ("q",))
        assert torch.get_deterministic_debug_mode() == mode
        assert torch.utils.deterministic.fill_uninitialized_memory == filled


def test_a_thread_waits_for_anothers_choice() -> None:
    entered = threading.Event()

    def enter() -> None:
        with stock_cuda._in_one_order():
            entered.set()

    before = torch.get_deterministic_debug_mode()
    thread = threading.Thread(target=enter)
    with stock_cuda._in_one_order():
        thread.start()
        assert not entered.wait(0.05)
    thread.join()
    assert entered.is_set()
    assert torch.get_deterministic_debug_mode() == before


@pytest.mark.parametrize(
    ("call", "word"),
    [
        ({"dtype": torch.float32}, "float32"),
        ({"softcap": 3.0}, "softcap"),
        ({"alibi": True}, "ALiBi"),
        ({"bias": True}, "bias"),
        ({"head_dim_v": 16}, "one head dim"),
        ({"head_dim": 20}, "a multiple of 8"),
        ({"head_dim": 264}, "to 256"),
        ({"dropout_p": 0.1}, "philox.py"),
        ({"page_size": 8}, "paged"),
        ({"leftpad_k": (2,)}, "left padding"),
        ({"seqlen_k": 5, "window_right": 6}, "a right bound"),
    ],
    ids=str,
)
def test_refusals_say_why_and_portable_serves(call: dict[str, Any], word: str) -> None:
    problem, _ = make_inputs(**{**SHAPE, "dtype": torch.float16, **call})
    assert word in str(stock.refuse(on_cuda(problem)))
    assert plan(on_cuda(problem)).engine == "portable"


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-46])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    """The kernels take the largest score before they scale, and hidden keys have -inf."""
    problem, _ = make_inputs(**{**SHAPE, "dtype": torch.float16})
    for window_right in (-1, 0):
        call = on_cuda(problem)._replace(scale=scale, window_right=window_right)
        assert "scale above 0" in str(stock.refuse(call))
        assert plan(call).engine == "portable"


def test_auto_takes_it_and_the_gradients_where_they_are() -> None:
    problem, _ = make_inputs(**SHAPE, dtype=torch.float16)
    training = on_cuda(problem)._replace(needs_grad=True)
    assert plan(training)[:2] == ("stock", None)
    assert plan(training).backward == "stock"
    for other in ({"head_dim": 256}, {"seqused_k": (7,)}):
        problem, _ = make_inputs(**{**SHAPE, **other}, dtype=torch.float16)
        training = on_cuda(problem)._replace(needs_grad=True)
        assert plan(training).engine == "stock"
        assert plan(training).backward == "portable"
