"""The Metal append kernel writes the definition's codes, scales and rotated queries to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flashmetal.cache_append import AppendInputs
from flashmetal.engines import append as portable
from flashmetal.engines.metal import metal_runtime
from flashmetal.engines.metal.append import append

from ..features import in_turn
from .appends import make_append
from .simulated import bits, runtime

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
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
    "packed": {"packed": True, "rotary_dim": 64, "page_size": 8, "k_format": "int8"},
    "odd dimensions": {"head_dim": 33, "head_dim_v": 7, "rotary_dim": 6},
    "strided": {"strided": True, "rotary_dim": 64},
}


def copied(inputs: AppendInputs) -> AppendInputs:
    names = ("k_cache", "v_cache", "k_scale", "v_scale")
    given = {name: getattr(inputs, name) for name in names}
    return inputs._replace(**{name: x.clone() for name, x in given.items() if x is not None})


def written(inputs: AppendInputs, q: Tensor | None) -> list[Tensor]:
    results = (inputs.k_cache, inputs.v_cache, inputs.k_scale, inputs.v_scale, q)
    return [x for x in results if x is not None]


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, DTYPES))
def test_bits_of_the_definition(case: str, dtype: torch.dtype) -> None:
    problem, expected = make_append(dtype, **CASES[case])
    found = copied(expected)
    q = portable.append(problem, expected)
    with metal_runtime(runtime()):
        q_found = append(problem, found)
    for x, y in zip(written(found, q_found), written(expected, q), strict=True):
        assert all(map(torch.equal, bits(x), bits(y)))


def test_zeros_have_scale_zero() -> None:
    problem, inputs = make_append(torch.float16, k_format="int4", v_format="fp8")
    inputs.k_new.zero_()
    inputs.v_new.zero_()
    with metal_runtime(runtime()):
        append(problem, inputs)
    assert torch.all(inputs.k_scale[0, :4] == 0)
    assert torch.all(inputs.k_cache[0, :4] == 0x88)
    assert torch.all(inputs.v_cache[0, :4].float() == 0)
