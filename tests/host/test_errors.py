"""Every wrong argument, one by one: the error's type, the function's name, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashmetal

F16 = torch.float16


def randn(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(shape, **options)


def dense(**changes: Any) -> None:
    arguments: dict[str, Any] = dict(q=randn(2, 5, 4, 8), k=randn(2, 7, 2, 8), v=randn(2, 7, 2, 8))
    flashmetal.flash_attn_func(**{**arguments, **changes})


def varlen_arguments(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(
        q=randn(5, 4, 8),
        k=randn(7, 2, 8),
        v=randn(7, 2, 8),
        cu_seqlens_q=ints(0, 2, 5),
        cu_seqlens_k=ints(0, 4, 7),
        max_seqlen_q=3,
        max_seqlen_k=4,
    )
    return {**arguments, **changes}


def varlen(**changes: Any) -> None:
    flashmetal.flash_attn_varlen_func(**varlen_arguments(**changes))


def ints(*values: int, dtype: torch.dtype = torch.int32, **options: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, **options)


# (changed arguments, the error, words that its message must hold)
DENSE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "q is no tensor": ({"q": [1.0]}, TypeError, "q must be a torch.Tensor, got list"),
    "k is None": ({"k": None}, TypeError, "k must be a torch.Tensor, got None"),
    "q has three dimensions": ({"q": randn(5, 4, 8)}, ValueError, "q must be (B, Sq, heads"),
    "v has five dimensions": ({"v": randn(1, 2, 7, 2, 8)}, ValueError, "v must be (B, Sk, heads"),
    "no heads": ({"q": randn(2, 5, 0, 8)}, ValueError, "at least one head"),
    "no head_dim": (
        {"q": randn(2, 5, 4, 0), "k": randn(2, 7, 2, 0)},
        ValueError,
        "head_dim of at least 1",
    ),
    "batch sizes differ": ({"q": randn(3, 5, 4, 8)}, ValueError, "one batch size, got 3, 2"),
    "k and v differ": ({"v": randn(2, 6, 2, 8)}, ValueError, "k and v must agree"),
    "head dims differ": ({"q": randn(2, 5, 4, 16)}, ValueError, "one head_dim, got 16 and 8"),
    "heads do not divide": ({"q": randn(2, 5, 3, 8)}, ValueError, "multiple of the key heads"),
    "integer tensors": (
        {name: torch.ones(2, 7, 2, 8, dtype=torch.int32) for name in "qkv"},
        TypeError,
        "torch.int32",
    ),
    "dtypes differ": ({"k": randn(2, 7, 2, 8, dtype=F16)}, TypeError, "one dtype"),
    "devices differ": ({"k": randn(2, 7, 2, 8, device="meta")}, ValueError, "device cpu, got meta"),
    "dropout is 1": ({"dropout_p": 1.0}, ValueError, "in [0, 1), got 1.0"),
    "dropout is negative": ({"dropout_p": -0.1}, ValueError, "in [0, 1), got -0.1"),
    "dropout is text": ({"dropout_p": "no"}, TypeError, "dropout_p must be a number"),
    "scale is infinite": ({"softmax_scale": float("inf")}, ValueError, "softmax_scale must be fin"),
    "scale is nan": ({"softmax_scale": float("nan")}, ValueError, "softmax_scale must be finite"),
    "scale is a list": ({"softmax_scale": [1.0]}, TypeError, "softmax_scale must be a number"),
    "softcap is negative": ({"softcap": -1.0}, ValueError, "softcap must be positive"),
    "softcap is nan": ({"softcap": float("nan")}, ValueError, "softcap must be finite"),
    "softcap is None": ({"softcap": None}, TypeError, "softcap must be a number"),
    "causal is text": ({"causal": "yes"}, TypeError, "causal must be a bool"),
    "window below -1": ({"window_size": (-2, 0)}, ValueError, "got (-2, 0)"),
    "window right below -1": ({"window_size": (3, -5)}, ValueError, "got (3, -5)"),
    "window is one int": ({"window_size": 64}, TypeError, "window_size must be two ints, got 64"),
    "window has three": ({"window_size": (1, 2, 3)}, TypeError, "window_size must be two ints"),
    "window of floats": ({"window_size": (1.5, 0)}, TypeError, "window_size must be two ints"),
    "window of None": ({"window_size": (None, None)}, TypeError, "window_size must be two ints"),
    "boolean bias": (
        {"bias": torch.ones(2, 4, 5, 7, dtype=torch.bool)},
        TypeError,
        "turn a boolean mask into 0 and -inf",
    ),
    "bias of another dtype": (
        {"bias": randn(2, 4, 5, 7, dtype=F16)},
        TypeError,
        "bias must be flo",
    ),
    "bias without batch": ({"bias": randn(4, 5, 7)}, ValueError, "bias must be (B or 1"),
    "bias of other keys": ({"bias": randn(2, 4, 5, 1)}, ValueError, "bias must be (B or 1"),
    "bias of the key heads": ({"bias": randn(2, 2, 5, 7)}, ValueError, "(2, 4, 5, 7), got (2, 2"),
    "slopes in half": ({"alibi_slopes": randn(4, dtype=F16)}, TypeError, "must be float32"),
    "slopes of the key heads": ({"alibi_slopes": randn(2)}, ValueError, "(Hq,) or (B, Hq)"),
    "slopes of other batches": ({"alibi_slopes": randn(3, 4)}, ValueError, "(Hq,) or (B, Hq)"),
    "sinks of the key heads": ({"s_aux": randn(2)}, ValueError, "s_aux must be (4,)"),
    "integer sinks": ({"s_aux": ints(1, 2, 3, 4)}, TypeError, "s_aux must be a floating-point"),
    "sinks elsewhere": ({"s_aux": randn(4, device="meta")}, ValueError, "s_aux must be on q's"),
    "sinks are a list": ({"s_aux": [0.0] * 4}, TypeError, "s_aux must be a torch.Tensor, got list"),
    "unknown impl": ({"impl": "cuda"}, ValueError, "impl must be one of"),
    "unknown kernel": ({"impl": "metal", "kernel": "fast"}, ValueError, "kernel must be one of"),
    "kernel without metal": ({"kernel": "simdgroup"}, ValueError, "needs impl='metal'"),
}
VARLEN: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "q is dense": ({"q": randn(1, 5, 4, 8)}, ValueError, "q must be (total_q, heads"),
    "heads before the sequence": (
        {"q": randn(5, 4, 8).transpose(0, 1)},
        ValueError,
        "transpose if yours",
    ),
    "cu_seqlens is a list": (
        {"cu_seqlens_q": [0, 2, 5]},
        TypeError,
        "cu_seqlens_q must be a torch",
    ),
    "cu_seqlens is None": (
        {"cu_seqlens_k": None},
        TypeError,
        "cu_seqlens_k must be a torch.Tensor",
    ),
    "cu_seqlens in int64": (
        {"cu_seqlens_q": ints(0, 2, 5, dtype=torch.int64)},
        TypeError,
        "cu_seqlens_q must be int32, got torch.int64; use .to(torch.int32)",
    ),
    "cu_seqlens elsewhere": (
        {"cu_seqlens_q": ints(0, 2, 5, device="meta")},
        ValueError,
        "cu_seqlens_q must be on q's device cpu",
    ),
    "cu_seqlens in two dimensions": (
        {"cu_seqlens_k": ints(0, 4, 7)[None]},
        ValueError,
        "cu_seqlens_k must be (batch + 1,), got (1, 3)",
    ),
    "cu_seqlens is empty": ({"cu_seqlens_q": ints()}, ValueError, "must hold batch + 1 offsets"),
    "cu_seqlens of other batches": (
        {"cu_seqlens_q": ints(0, 5)},
        ValueError,
        "one length (batch + 1), got 2 and 3",
    ),
    "cu_seqlens decreases": (
        {"cu_seqlens_q": ints(0, 3, 2, 5), "cu_seqlens_k": ints(0, 2, 4, 7)},
        ValueError,
        "cu_seqlens_q must not decrease, got 3 followed by 2 at 1",
    ),
    "cu_seqlens_q ends early": (
        {"cu_seqlens_q": ints(0, 2, 4)},
        ValueError,
        "cu_seqlens_q must run from 0 to the 5 rows of q, got 0 to 4",
    ),
    "cu_seqlens_k ends late": (
        {"cu_seqlens_k": ints(0, 4, 9)},
        ValueError,
        "cu_seqlens_k must run from 0 to the 7 rows of k, got 0 to 9",
    ),
    "cu_seqlens starts late": ({"cu_seqlens_q": ints(1, 2, 5)}, ValueError, "got 1 to 5"),
    "max_seqlen_q too small": (
        {"max_seqlen_q": 2},
        ValueError,
        "max_seqlen_q must be at least the longest sequence, 3, got 2",
    ),
    "max_seqlen_k too small": (
        {"max_seqlen_k": 3},
        ValueError,
        "max_seqlen_k must be at least the",
    ),
    "max_seqlen is negative": ({"max_seqlen_k": -1}, ValueError, "max_seqlen_k must be at least 0"),
    "max_seqlen is a float": ({"max_seqlen_q": 3.0}, TypeError, "max_seqlen_q must be an int"),
    "max_seqlen is None": ({"max_seqlen_q": None}, TypeError, "max_seqlen_q must be an int"),
    "max_seqlen is a vector": ({"max_seqlen_q": ints(3, 3)}, TypeError, "max_seqlen_q must be"),
    "seqused_k in int64": (
        {"seqused_k": ints(1, 1, dtype=torch.int64)},
        TypeError,
        "seqused_k must be int32",
    ),
    "seqused_k of other batches": ({"seqused_k": ints(1)}, ValueError, "seqused_k must be (2,)"),
    "seqused_k beyond the keys": (
        {"seqused_k": ints(4, 4)},
        ValueError,
        "the 3 keys of its sequence, got 4 for sequence 1",
    ),
    "seqused_k is negative": ({"seqused_k": ints(-1, 0)}, ValueError, "got -1 for sequence 0"),
    "bias of the real lengths": (
        {"bias": randn(1, 1, 5, 7)},
        ValueError,
        "max_seqlen_q or 1, max_seqlen_k",
    ),
    "slopes of other batches": ({"alibi_slopes": randn(3, 4)}, ValueError, "(Hq,) or (B, Hq)"),
    "pages without rows": ({"block_table": ints(0, 1)}, ValueError, "k must be (pages, page_size"),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense(case: str) -> None:
    changes, error, words = DENSE[case]
    with pytest.raises(error) as caught:
        dense(**changes)
    assert str(caught.value).startswith("flash_attn_func: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("case", VARLEN)
def test_varlen(case: str) -> None:
    changes, error, words = VARLEN[case]
    with pytest.raises(error) as caught:
        varlen(**changes)
    assert str(caught.value).startswith("flash_attn_varlen_func: ")
    assert words in str(caught.value)


def test_the_unchanged_calls_are_right() -> None:
    dense()
    varlen()


def test_a_wrong_call_stays_wrong_after_a_right_one() -> None:
    """Checked problems are cached; the cache must not let an equal-looking argument through."""
    dense(softcap=1.0, window_size=(1, 1))
    with pytest.raises(TypeError, match="window_size"):
        dense(softcap=1.0, window_size=(1.0, 1))
    with pytest.raises(TypeError, match="one dtype"):
        dense(softcap=1.0, window_size=(1, 1), v=randn(2, 7, 2, 8, dtype=torch.float64))


def test_gradients_do_not_get_around_the_checks() -> None:
    with pytest.raises(ValueError, match="flash_attn_varlen_func: cu_seqlens_q must run"):
        varlen(q=randn(5, 4, 8, requires_grad=True), cu_seqlens_q=ints(0, 2, 4))


PACKED: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "qkv of two": ("flash_attn_qkvpacked_func", (randn(2, 5, 2, 4, 8),), "(B, S, 3, heads"),
    "qkv without batch": ("flash_attn_qkvpacked_func", (randn(5, 3, 4, 8),), "(B, S, 3, heads"),
    "kv of three": (
        "flash_attn_kvpacked_func",
        (randn(2, 5, 4, 8), randn(2, 5, 3, 4, 8)),
        "kv must be (B, S, 2, heads",
    ),
    "packed qkv of two": (
        "flash_attn_varlen_qkvpacked_func",
        (randn(5, 2, 4, 8), ints(0, 5), 5),
        "qkv must be (total, 3, heads",
    ),
    "packed kv with batch": (
        "flash_attn_varlen_kvpacked_func",
        (randn(5, 4, 8), randn(1, 5, 2, 4, 8), ints(0, 5), ints(0, 5), 5, 5),
        "kv must be (total, 2, heads",
    ),
}


@pytest.mark.parametrize("case", PACKED)
def test_packed(case: str) -> None:
    name, arguments, words = PACKED[case]
    with pytest.raises(ValueError) as caught:
        getattr(flashmetal, name)(*arguments)
    assert str(caught.value).startswith(f"{name}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["flash_attn_qkvpacked_func", "flash_attn_varlen_qkvpacked_func"])
def test_packed_is_no_tensor(name: str) -> None:
    lengths = (ints(0, 5), 5) if "varlen" in name else ()
    with pytest.raises(TypeError, match=f"{name}: qkv must be a torch.Tensor, got list"):
        getattr(flashmetal, name)([1.0], *lengths)


def in_place(out: Any, **changes: Any) -> None:
    arguments = varlen_arguments()
    names = {"q": "query", "k": "key", "v": "value"}
    arguments = {names.get(name, name): value for name, value in arguments.items()}
    arguments |= {"do_causal": True, "scale": 0.3, "softcapping": 1.0}
    flashmetal.flash_attention_varlen(out, **{**arguments, **changes})


OUT: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "no tensor": (None, {}, TypeError, "out must be a torch.Tensor, got NoneType"),
    "dtype": (randn(5, 4, 8, dtype=F16), {}, TypeError, "out must have q's dtype"),
    "shape": (randn(5, 4, 9), {}, ValueError, "out must be (5, 4, 8) on cpu, got (5, 4, 9)"),
    "device": (randn(5, 4, 8, device="meta"), {}, ValueError, "on cpu, got (5, 4, 8) on meta"),
    "softcapping": (randn(5, 4, 8), {"softcapping": -2.0}, ValueError, "softcap must be positive"),
    "scale": (randn(5, 4, 8), {"scale": float("inf")}, ValueError, "softmax_scale must be finite"),
}


@pytest.mark.parametrize("case", OUT)
def test_in_place(case: str) -> None:
    out, changes, error, words = OUT[case]
    with pytest.raises(error) as caught:
        in_place(out, **changes)
    assert str(caught.value).startswith("flash_attention_varlen: ")
    assert words in str(caught.value)


def test_an_engine_asked_for_never_falls_back() -> None:
    with pytest.raises(NotImplementedError, match="impl='metal' cannot serve this call: no Metal"):
        dense(impl="metal")
    with pytest.raises(NotImplementedError, match="impl='stock' cannot serve this call: .*softcap"):
        dense(impl="stock", softcap=2.0)
    q, k = randn(2, 5, 4, 8, requires_grad=True).double(), randn(2, 5, 2, 8).double()
    with pytest.raises(NotImplementedError, match="impl='stock'.*float64 log-sum-exp"):
        flashmetal.flash_attn_func(q, k, k, impl="stock")
