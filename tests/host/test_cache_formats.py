"""What the formats of a cache hold, against their definition written a second time."""

from __future__ import annotations

import pytest
import torch

from flashmetal.cache.formats import FORMATS, dequantise, quantise

# Half the distance between two codes at the largest magnitude, relative to that magnitude.
HALF_STEP = {"dense": 0.0, "int8": 0.5 / 127, "fp8": 16 / 448, "int4": 0.5 / 7}


@pytest.mark.parametrize("cache_format", FORMATS)
def test_values_come_back_within_half_a_step(cache_format: str) -> None:
    x = torch.randn(3, 5, 2, 64) * torch.logspace(-6, 6, 5)[:, None, None]
    values = dequantise(*quantise(x, cache_format), torch.float64)
    group = 32 if cache_format == "int4" else 64
    largest = x.double().unflatten(-1, (-1, group)).abs().amax(-1, keepdim=True)
    error = (values - x.double()).unflatten(-1, (-1, group)).abs()
    # The scale is rounded to float32.
    assert torch.all(error <= largest * (HALF_STEP[cache_format] + torch.finfo(torch.float32).eps))
    assert torch.all(error.amax(-1) >= 0.1 * HALF_STEP[cache_format] * largest[..., 0])


@pytest.mark.parametrize("cache_format", FORMATS)
def test_zeros_stay_zeros(cache_format: str) -> None:
    x = torch.zeros(2, 1, 32)
    codes, scale = quantise(x, cache_format)
    assert torch.equal(dequantise(codes, scale, torch.float32), x)
    assert scale is None or not scale.any()


def test_int4_packs_the_earlier_element_low() -> None:
    x = torch.arange(-7.0, 8.0).repeat(3)[:32].clone()
    codes, scale = quantise(x[None], "int4")
    assert scale is not None
    assert torch.equal(scale, torch.ones(1, 1))
    expected = [int(x[i]) + 8 | int(x[i + 1]) + 8 << 4 for i in range(0, 32, 2)]
    assert codes[0].tolist() == expected


def test_quotients_round_half_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    codes, _ = quantise(x, "int8")
    assert codes[0].tolist() == [127, 0, 2, 2, 0, -2]


def test_bytes_are_those_of_the_table() -> None:
    x = torch.randn(10, 3, 64)
    sizes = {"dense": 64 * 4, "int8": 64 + 4, "fp8": 64 + 4, "int4": 32 + 8}
    for cache_format, size in sizes.items():
        stored = quantise(x, cache_format)
        assert sum(part.nbytes for part in stored if part is not None) == 30 * size


@pytest.mark.parametrize(("name", "dim"), [("int2", 32), ("int4", 48)])
def test_what_cannot_be_stored(name: str, dim: int) -> None:
    with pytest.raises(ValueError, match="quantise: "):
        quantise(torch.randn(1, 1, dim), name)
