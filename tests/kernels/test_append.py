"""The Metal append kernel writes the definition's codes, scales and rotated queries to the bit."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import metalsim
from flashmetal.cache import ops as cache_ops
from flashmetal.cache.append import AppendInputs, AppendRequest, CacheAppend
from flashmetal.cache.formats import dequantise
from flashmetal.cache.testing_append import copied, make_append
from flashmetal.engines import append as portable
from flashmetal.engines import metal
from flashmetal.engines.metal import Runtime, SetAside, Trust, metal_runtime
from flashmetal.engines.metal.append import append

from ..features import in_turn
from .simulated import bits, gpu_of, runtime

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PACKED = {"packed_q": True, "packed_new": True}
CASES: dict[str, dict[str, Any]] = {
    "dense": {},
    "pages": {"page_size": 8},
    "int8": {"k_format": "int8", "v_format": "int8"},
    "fp8 in pages": {"k_format": "fp8", "v_format": "fp8", "page_size": 4},
    "int4": {"k_format": "int4", "v_format": "int4"},
    "int8 keys, int4 values, pages": {"k_format": "int8", "v_format": "int4", "page_size": 16},
    "interleaved": {"rotary_dim": 64},
    "halves": {"rotary_dim": 64, "interleaved": False},
    "part of a row": {"rotary_dim": 24, "interleaved": False, "page_size": 8},
    "queries at one position": {"rotary_dim": 32, "rotate_rows": False},
    "packed": {**PACKED, "rotary_dim": 64, "page_size": 8, "k_format": "int8"},
    "packed queries at one position": {**PACKED, "rotary_dim": 32, "rotate_rows": False},
    "odd dimensions": {"head_dim": 33, "head_dim_v": 7, "rotary_dim": 6},
    "strided": {"strided": True, "rotary_dim": 64},
    "strided codes": {"strided": True, "k_format": "int4", "v_format": "fp8", "page_size": 8},
}


def written(inputs: AppendInputs, q: Tensor | None) -> list[Tensor]:
    results = (inputs.k_cache, inputs.v_cache, inputs.k_scale, inputs.v_scale, q)
    return [x for x in results if x is not None]


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, DTYPES))
def test_bits_of_the_definition(case: str, dtype: torch.dtype) -> None:
    problem, expected = make_append(dtype=dtype, **CASES[case])
    found = copied(expected)
    q = portable.append(problem, expected)
    with metal_runtime(runtime()):
        q_found = append(problem, found)
    for x, y in zip(written(found, q_found), written(expected, q), strict=True):
        assert all(map(torch.equal, bits(x), bits(y)))


def test_zeros_have_scale_zero() -> None:
    problem, inputs = make_append(dtype=torch.float16, k_format="int4", v_format="fp8")
    inputs.k_new.zero_()
    inputs.v_new.zero_()
    with metal_runtime(runtime()):
        append(problem, inputs)
    assert torch.all(inputs.k_scale[0, :4] == 0)
    assert torch.all(inputs.k_cache[0, :4] == 0x88)
    assert torch.all(inputs.v_cache[0, :4].float() == 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cache_format", ["int8", "fp8", "int4"])
def test_what_is_not_finite_stays_so(cache_format: str, bad: float) -> None:
    formats = {"k_format": cache_format, "v_format": cache_format}
    problem, inputs = make_append(dtype=torch.float16, head_dim=96, **formats)
    inputs.k_new[0, 0, 0, 50] = bad
    inputs.v_new[1, 1] = bad
    expected, found = copied(inputs), copied(inputs)
    portable.append(problem, expected)
    with metal_runtime(runtime()):
        append(problem, found)
    for x, y in zip(written(found, None), written(expected, None), strict=True):
        assert torch.equal(x.float().nan_to_num(0.5), y.float().nan_to_num(0.5))
    assert found.k_scale is not None
    k = dequantise(found.k_cache[0, 0, 0], found.k_scale[0, 0, 0], torch.float32)
    assert k.isnan().sum() == (32 if cache_format == "int4" else 96)


@pytest.mark.parametrize("case", CASES)
def test_the_small_append_of_a_proof_has_the_variant_of_the_call(case: str) -> None:
    problem, inputs = make_append(dtype=torch.float16, **CASES[case])
    sources: list[str] = []
    proving = Runtime(partial(idle, sources), "cpu", gpu_of("M1"), trust=Trust())
    wrong = pytest.warns(RuntimeWarning, match="cache_append float16 D=.* is wrong by")
    with metal_runtime(proving), wrong, pytest.raises(SetAside):
        append(problem, copied(inputs))
    assert len(sources) == 1
    with metal_runtime(Runtime(partial(idle, sources), "cpu", gpu_of("M1"))):
        append(problem, copied(inputs))
    assert sources[0] == sources[1]


def idle(sources: list[str], source: str) -> Any:
    """A compiler of kernels that do nothing."""
    sources.append(source)
    return SimpleNamespace(cache_append=lambda *arguments, **launch: None)


FAULTS = {
    "scale": ("scales[0] = scale;", "scales[0] = 1.02f * scale;"),
    "angle": ("x + y : x - y", "x + y : x + y"),
    "row": ("place = before + row;", "place = before + row + 1;"),
    "compiler": ("kernel void", "colonel void"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_append_is_set_aside_and_torch_serves(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_shader(source: str) -> Any:
        return metalsim.compile_shader(source.replace(*FAULTS[fault]))

    def metal_first(problem: CacheAppend, impl: str) -> Any:
        return metal if metal.refuse_append(problem) is None else portable

    monkeypatch.setattr(cache_ops, "_engine", metal_first)
    how = AppendRequest("test")
    _, given = make_append(dtype=torch.float16, k_format="int8", rotary_dim=32, page_size=8)
    found, expected = copied(given), copied(given)
    with metal_runtime(Runtime(compile_shader, "cpu", gpu_of("M1"), trust=Trust())):
        with pytest.warns(RuntimeWarning, match="cache_append float16 .*is set aside") as caught:
            cache_ops.append_to_cache(found, how)
        assert len(caught) == 1
        with pytest.raises(SetAside, match="cache_append"):
            append(CacheAppend.of(given, how), copied(given))
        monkeypatch.undo()
        with pytest.raises(NotImplementedError, match="impl='metal' cannot serve this append"):
            cache_ops.append_to_cache(copied(given), how._replace(impl="metal"))
    portable.append(CacheAppend.of(given, how), expected)
    for x, y in zip(written(found, None), written(expected, None), strict=True):
        assert all(map(torch.equal, bits(x), bits(y)))


def test_a_right_append_is_proven_once() -> None:
    compiled: list[str] = []

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        compiled.append(source)
        return metalsim.compile_shader(source)

    problem, inputs = make_append(dtype=torch.float16, rotary_dim=64, v_format="int4")
    expected = copied(inputs)
    with metal_runtime(Runtime(compile_shader, "cpu", gpu_of("M1"), trust=Trust())):
        q = append(problem, inputs)
    assert len(compiled) == 1
    q_expected = portable.append(problem, expected)
    for x, y in zip(written(inputs, q), written(expected, q_expected), strict=True):
        assert all(map(torch.equal, bits(x), bits(y)))
