"""The public functions take flash_attn 2.8's parameters: same names, order and defaults."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import flashmetal

OPTIONS: dict[str, Any] = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
NONE = inspect.Parameter.empty
LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
FLASH_ATTN_2_8: dict[str, dict[str, Any]] = {
    "flash_attn_func": dict.fromkeys(("q", "k", "v"), NONE) | OPTIONS,
    "flash_attn_qkvpacked_func": {"qkv": NONE} | OPTIONS,
    "flash_attn_kvpacked_func": dict.fromkeys(("q", "kv"), NONE) | OPTIONS,
    "flash_attn_varlen_func": dict.fromkeys(("q", "k", "v", *LENGTHS), NONE)
    | OPTIONS
    | {"block_table": None},
    "flash_attn_varlen_qkvpacked_func": dict.fromkeys(("qkv", "cu_seqlens", "max_seqlen"), NONE)
    | OPTIONS,
    "flash_attn_varlen_kvpacked_func": dict.fromkeys(("q", "kv", *LENGTHS), NONE) | OPTIONS,
    "flash_attn_with_kvcache": dict.fromkeys(("q", "k_cache", "v_cache"), NONE)
    | dict.fromkeys(("k", "v", "rotary_cos", "rotary_sin", "cache_seqlens"))
    | dict.fromkeys(("cache_batch_idx", "cache_leftpad", "block_table", "softmax_scale"))
    | {"causal": False, "window_size": (-1, -1), "softcap": 0.0, "rotary_interleaved": True}
    | {"alibi_slopes": None, "num_splits": 0, "return_softmax_lse": False},
    # flash_attn 3 has its own.
    "flash_attn_3_with_kvcache": dict.fromkeys(("q", "k_cache", "v_cache"), NONE)
    | dict.fromkeys(("k", "v", "qv", "rotary_cos", "rotary_sin", "cache_seqlens"))
    | dict.fromkeys(("cache_batch_idx", "cache_leftpad", "page_table", "cu_seqlens_q"))
    | dict.fromkeys(("cu_seqlens_k_new", "max_seqlen_q", "rotary_seqlens", "q_descale"))
    | dict.fromkeys(("k_descale", "v_descale", "softmax_scale"))
    | {"causal": False, "window_size": (-1, -1), "attention_chunk": 0, "softcap": 0.0}
    | {"rotary_interleaved": True, "scheduler_metadata": None, "num_splits": 0}
    | {"pack_gqa": None, "sm_margin": 0, "return_softmax_lse": False},
    # The in-place function of the metal-flash-sdpa kernels.
    "flash_attention_varlen": dict.fromkeys(
        ("out", "query", "key", "value", *LENGTHS, "do_causal", "scale", "softcapping"), NONE
    ),
}
OURS = set("s_aux bias return_lse seqused_k leftpad_k k_scale v_scale validate impl kernel".split())


@pytest.mark.parametrize("name", FLASH_ATTN_2_8)
def test_parameters_are_flash_attns(name: str) -> None:
    parameters = inspect.signature(getattr(flashmetal, name)).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(FLASH_ATTN_2_8[name].items())
    rest = [p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD]
    assert all(p.kind is p.KEYWORD_ONLY for p in rest)
    assert {p.name for p in rest} <= OURS


@pytest.mark.parametrize("name", FLASH_ATTN_2_8)
def test_unknown_keyword_is_refused(name: str) -> None:
    required = [None] * sum(d is NONE for d in FLASH_ATTN_2_8[name].values())
    with pytest.raises(TypeError, match="sofcap"):
        getattr(flashmetal, name)(*required, sofcap=3.0)


def test_positional_options_mean_what_they_mean_in_flash_attn() -> None:
    """mtlattn had softmax_scale where flash_attn has dropout_p: a positional 0.0 was a scale."""
    q, k, v = torch.randn(3, 1, 6, 2, 8)
    named = flashmetal.flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=0.5, causal=True, window_size=(2, 0), softcap=1.0
    )
    assert torch.equal(flashmetal.flash_attn_func(q, k, v, 0.0, 0.5, True, (2, 0), 1.0), named)
    assert torch.equal(
        flashmetal.flash_attn_func(q, k, v, 0.0),
        flashmetal.flash_attn_func(q, k, v, softmax_scale=8**-0.5),
    )
