"""What torch's fused CPU kernel does otherwise than the contract, each kept from it by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashmetal.engines import portable, stock
from flashmetal.plan import plan
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import SHAPE


@pytest.mark.parametrize(
    "empty",
    [{"seqlen_k": 0}, {"seqused_k": (0,)}, {"lengths_q": (4, 3), "lengths_k": (0, 5)}],
    ids=str,
)
def test_empty_keys_would_kill_the_process(empty: dict[str, Any]) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **empty})
    assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)


def test_a_last_stride_other_than_one_would_be_read_wrongly() -> None:
    problem, inputs = make_inputs(**SHAPE)
    wide = [torch.stack([x, -x], -1).flatten(-2)[..., ::2] for x in inputs[:3]]
    assert all(x.stride(-1) == 2 for x in wide)
    spread = inputs._replace(q=wide[0], k=wide[1], v=wide[2])
    assert_matches_reference(*stock.forward(problem, spread), problem, inputs)


def test_rows_without_a_key_would_get_lse_zero() -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 70, "seqlen_k": 37}, window_right=0)
    o, lse = stock.forward(problem, inputs)
    assert torch.all(o[:, :33] == 0)
    assert torch.all(lse[..., :33] == -torch.inf)
    assert_matches_reference(o, lse, problem, inputs)


def test_causal_would_be_aligned_top_left() -> None:
    problem, inputs = make_inputs(**SHAPE, window_right=0)
    o, _ = stock.forward(problem, inputs)
    top_left = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in inputs[:3]), is_causal=True, enable_gqa=True
    ).transpose(1, 2)
    assert not torch.allclose(o, top_left, atol=1e-2)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-46, 1e-42])
@pytest.mark.parametrize(
    "lengths", [{}, {"lengths_q": (4, 9), "lengths_k": (7, 9)}, {"seqused_k": (60,)}], ids=str
)
def test_causal_would_be_nan_under_a_scale_that_is_not_positive(
    scale: float, lengths: dict[str, Any]
) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **lengths}, window_right=0)
    problem = problem._replace(scale=scale)
    assert "scale" in str(stock.refuse(problem))
    assert stock.refuse(problem._replace(scale=1e-3)) is None
    assert plan(problem).engine == "portable"
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize("scale", [-0.5, 0.0])
@pytest.mark.parametrize(
    "call",
    [{}, {"seqlen_q": 1, "seqused_k": (60,)}, {"seqlen_q": 1, "page_size": 16, "seqused_k": (60,)}],
    ids=str,
)
def test_masks_that_are_added_stand_any_scale(scale: float, call: dict[str, Any]) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **call})
    problem = problem._replace(scale=scale)
    assert stock.refuse(problem) is None
    assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)


def test_half_would_be_summed_in_half() -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_k": 2000}, dtype=torch.float16)
    # |q.k| is far past 65504, the largest half; the scale brings it back.
    inputs = inputs._replace(q=inputs.q * 300, k=inputs.k * 300)
    problem = problem._replace(scale=1e-5)
    assert (inputs.q.float()[0, :, 0] @ inputs.k.float()[0, :, 0].T).abs().max() > 65504
    assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_would_get_an_lse_of_fast_exponentials(dtype: torch.dtype) -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 64, "seqlen_k": 64}, dtype=dtype)
    o, lse = stock.forward(problem, inputs)
    assert_matches_reference(o, lse, problem, inputs)
    q, k, v = (x.transpose(1, 2) for x in inputs[:3])
    _, native = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    with pytest.raises(AssertionError, match="lse is wrong"):
        assert_matches_reference(o, native, problem, inputs)


@pytest.mark.parametrize(
    ("feature", "word"),
    [
        ({"softcap": 3.0}, "softcap"),
        ({"alibi": True}, "ALiBi"),
        ({"bias": True}, "bias"),
        ({"window_left": 5}, "window"),
        ({"window_right": 5}, "window"),
        ({"head_dim_v": 16}, "head dimension"),
    ],
    ids=str,
)
def test_refusals_say_why(feature: dict[str, Any], word: str) -> None:
    problem, _ = make_inputs(**SHAPE, **feature)
    reason = stock.refuse(problem)
    assert reason is not None
    assert word in reason


def test_other_devices_are_refused() -> None:
    problem, _ = make_inputs(**SHAPE)
    reason = stock.refuse(problem._replace(device="mps"))
    assert reason is not None
    assert "mps" in reason


def test_the_portable_engine_takes_decode_steps_of_grouped_heads() -> None:
    shape = {"seqlen_q": 2, "seqlen_k": 4096, "head_dim": 64}
    grouped, _ = make_inputs(**shape, heads_q=8, heads_k=2)
    preferred, why = stock.prefer_stock(grouped)
    assert not preferred
    assert "reads k and v 4 times" in why
    assert stock.prefer_stock(make_inputs(**shape, heads_q=2, heads_k=2)[0])[0]
    assert stock.prefer_stock(make_inputs(**{**shape, "seqlen_q": 512}, heads_q=8, heads_k=2)[0])[0]


def test_single_rows_of_grouped_heads_keep_all_threads_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, _ = make_inputs(seqlen_q=1, seqlen_k=4096, head_dim=64, heads_q=8, heads_k=2)
    for threads, expected in ((2, True), (3, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        preferred, why = stock.prefer_stock(problem)
        assert preferred == expected
        assert preferred or "2 of the threads" in why
