"""The Metal decode kernels and caches, in the simulator, against the float64 oracle."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch

import flashmetal
import metalsim
from flashmetal.engines.metal import Gpu, metal_runtime
from flashmetal.engines.metal.tiles import splits_of
from flashmetal.plan import plan
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import CACHES, FEATURES, SHAPE, in_turn
from .simulated import TILE_GPUS, bits, counted_forward, runtime, simulated_forward

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CALLS = FEATURES | CACHES
FEW: dict[str, Any] = {"seqlen_q": 1, "seqlen_k": 300, "heads_q": 8, "heads_k": 2, "head_dim": 64}


def check(call: dict[str, Any], kernel: str, splits: int = 0, gpu: str = "M1") -> None:
    problem, inputs = make_inputs(**call)
    problem = problem._replace(num_splits=splits)
    o, lse = simulated_forward(problem, inputs, gpu=gpu, kernel=kernel)
    assert_matches_reference(o, lse, problem, inputs)


@pytest.mark.parametrize(
    ("feature", "dtype", "splits"),
    list(zip(CALLS, cycle(DTYPES), cycle((1, 3, 2, 5)), strict=False)),
    ids=str,
)
def test_decode(feature: str, dtype: torch.dtype, splits: int) -> None:
    check({**SHAPE, **CALLS[feature], "dtype": dtype}, "decode", splits)


@pytest.mark.parametrize("kernel", ["simdgroup", "scalar"])
@pytest.mark.parametrize(("feature", "dtype"), in_turn(CACHES, DTYPES))
def test_caches_in_the_other_kernels(feature: str, dtype: torch.dtype, kernel: str) -> None:
    check({**SHAPE, **CACHES[feature], "dtype": dtype}, kernel)


@pytest.mark.long
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", CALLS)
def test_decode_in_every_dtype(feature: str, dtype: torch.dtype, splits: int) -> None:
    check({**SHAPE, **CALLS[feature], "dtype": dtype}, "decode", splits)


@pytest.mark.parametrize(
    ("head_dim", "gpu"),
    list(zip((1, 20, 72, 128, 256), cycle(TILE_GPUS), strict=False)),
    ids=str,
)
def test_head_dim(head_dim: int, gpu: str) -> None:
    dtype = DTYPES[head_dim % 3]
    check({**FEW, "head_dim": head_dim, "dtype": dtype, "sinks": True}, "decode", 3, gpu)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_a_decode_reads_each_key_once(group: int) -> None:
    call = {**FEW, "seqlen_k": 8192, "heads_q": 2 * group, "dtype": torch.float16, "page_size": 16}
    problem, inputs = make_inputs(**call)
    cache = 2 * 8192 * 2 * 64 * 2 + inputs.block_table.nbytes
    for splits in (1, 3, 8):
        split = problem._replace(num_splits=splits)
        counters = counted_forward(split, inputs, kernel="decode")
        assert counters["device_bytes_loaded"] <= 1.05 * cache


def test_a_quantised_decode_reads_what_its_formats_promise() -> None:
    call = {**FEW, "seqlen_k": 8192, "dtype": torch.float16, "k_format": "int8", "v_format": "int4"}
    problem, inputs = make_inputs(**call)
    stored = (inputs.k, inputs.v, inputs.k_scale, inputs.v_scale)
    counters = counted_forward(problem._replace(num_splits=4), inputs, kernel="decode")
    assert counters["device_bytes_loaded"] <= 1.05 * sum(x.nbytes for x in stored)


def test_shares_are_a_small_part_of_the_cache_at_8192_keys() -> None:
    for cores in (8, 16, 40):
        splits = splits_of(cores, 1, 8192)
        shares = splits * 8 * (64 + 1) * 4
        assert shares <= 0.03 * 8192 * 64 * 2 * 2


def test_splits_fill_the_cores_of_the_chip_that_is_given() -> None:
    m1, ultra = Gpu.named("M1"), Gpu.named("M3 Ultra")
    assert splits_of(m1.cores, 64, 8192) == 1
    assert splits_of(m1.cores, 4, 65536) == 8
    assert splits_of(ultra.cores, 4, 65536) > splits_of(m1.cores, 4, 65536)
    assert splits_of(m1.cores, 1, 500) == 1


@pytest.mark.parametrize("schedule", range(8))
def test_equal_bits_under_eight_schedules(schedule: int) -> None:
    call = {**FEW, "page_size": 16, "k_format": "int8", "v_format": "int4", "sinks": True}
    problem, inputs = make_inputs(**call)
    problem = problem._replace(num_splits=4)
    first = simulated_forward(problem, inputs, kernel="decode")
    with metalsim.schedule(seed=schedule + 1, workers=1 + schedule % 2):
        second = simulated_forward(problem, inputs, kernel="decode")
    assert all(map(torch.equal, bits(*first), bits(*second)))


def test_the_plan_decodes_few_queries_and_says_what_it_cannot() -> None:
    with metal_runtime(runtime()):
        assert plan(make_inputs(**FEW)[0], "metal").kernel == "decode"
        assert plan(make_inputs(**SHAPE)[0], "metal").kernel == "simdgroup"
        dropped = make_inputs(**FEW, dropout_p=0.1)[0]
        assert plan(dropped, "metal").kernel == "simdgroup"
        with pytest.raises(NotImplementedError, match="decode kernel has no dropout"):
            plan(dropped, "metal", "decode")


def test_metal_flash_sdpa_paged_decode_case() -> None:
    """The paged-decode pull request's case: B 4, 16 heads, D 128, 50 keys, fp32, within 1.7e-6."""
    problem, inputs = make_inputs(
        batch=4, seqlen_q=1, seqlen_k=50, heads_q=16, heads_k=16, head_dim=128, page_size=16
    )
    o, _ = simulated_forward(problem, inputs, kernel="decode")
    exact, _ = flashmetal.reference.attention_reference(problem, inputs, torch.float64)
    assert (o - exact).abs().max() <= 1.7e-6


def test_mlx_decoded_at_32_bit_strides() -> None:
    """Keys past 2^31 elements from the first: a strided view of memory that is never touched."""
    far = 2**31 + 64
    k = torch.from_numpy(np.zeros(far + 4096, np.float16))
    views = (
        k.as_strided((1, 2, 1, 64), (0, far, 64, 1)),
        k.as_strided((1, 2, 1, 64), (0, far, 64, 1), 128),
    )
    for view in views:
        view.copy_(torch.randn(1, 2, 1, 64))
    q = torch.randn(1, 1, 4, 64, dtype=torch.float16)
    with metal_runtime(runtime()):
        found = flashmetal.flash_attn_func(q, *views, impl="metal", kernel="decode")
        expected = flashmetal.flash_attn_func(
            q, *(view.clone() for view in views), impl="metal", kernel="decode"
        )
    assert torch.equal(found, expected)


def test_a_step_of_a_server_runs_on_the_metal_kernels() -> None:
    """Append with rotation, then decode, as the portable engine does."""
    heads, dim, page = 2, 64, 16
    k_cache, v_cache = (torch.randn(9, page, heads, dim) for _ in range(2))
    table = torch.randperm(9)[:8].view(2, 4).to(torch.int32)
    lengths = torch.tensor([20, 37], dtype=torch.int32)
    angles = torch.randn(64, dim // 2)
    q, k, v = torch.randn(2, 3, 4, dim), *(torch.randn(2, 3, heads, dim) for _ in range(2))
    results = []
    for impl in ("metal", "portable"):
        caches = k_cache.clone(), v_cache.clone()
        with metal_runtime(runtime()):
            o = flashmetal.flash_attn_with_kvcache(
                q,
                *caches,
                k,
                v,
                rotary_cos=angles.cos(),
                rotary_sin=angles.sin(),
                cache_seqlens=lengths,
                block_table=table,
                causal=True,
                impl=impl,
            )
        results.append((o, *caches))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert all(map(torch.equal, results[0][1:], results[1][1:]))
