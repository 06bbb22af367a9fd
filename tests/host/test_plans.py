"""Plans and tiles for Apple GPUs that are not here: the chip is given."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.forward import forward_variant
from flashmetal.engines.metal.tiles import (
    THREADGROUP_BYTES,
    most_head_dim,
    registers,
    threadgroup_bytes,
    tile_of,
)
from flashmetal.engines.metal.variant import Loads, render
from flashmetal.plan import plan
from flashmetal.testing import make_inputs

# Registers a lane that still leave enough simdgroups on a core, of the 128 that a lane can have: 20
# of the forward kernel on Apple7, whose register file is split evenly; later chips share a memory.
MOST_REGISTERS = {("forward", 7): 92, ("forward", 9): 96, ("grad q", 7): 104, ("grad q", 9): 112}
LANE_REGISTERS = 128
TENSOR_REGISTERS = (
    160  # Apple10 has no published limit; its kernels are bound by loads, not by them
)


def every_tile() -> Iterator[tuple[str, str, int, int, int, int]]:
    for kernel, unit in product(
        ("forward", "decode", "grad q", "grad kv"), ("simdgroup", "tensor")
    ):
        if (kernel, unit) == ("decode", "tensor"):
            continue
        for family, element_bytes in product((7, 8, 9, 10), (2, 4)):
            for head_dim in range(8, most_head_dim(kernel, unit) + 1, 8):
                for head_dim_v in (head_dim, min(head_dim, 64), min(head_dim, 512)):
                    yield kernel, unit, family, element_bytes, head_dim, head_dim_v


def runtime(name: str, cores: int = 1) -> Runtime:
    return Runtime(lambda source: None, "cpu", Gpu.named(name, cores))


def test_every_tile_fits_threadgroup_memory_and_registers() -> None:
    for kernel, unit, family, *dims in every_tile():
        tile = tile_of(kernel, family, *dims, unit)
        assert threadgroup_bytes(kernel, tile, *dims) <= THREADGROUP_BYTES, (kernel, tile, dims)
        most = MOST_REGISTERS.get((kernel, 9 if family >= 9 else 7), LANE_REGISTERS)
        if unit == "tensor":
            most = TENSOR_REGISTERS
        assert registers(kernel, tile, *dims) <= most, (kernel, unit, family, tile, dims)


def test_head_dims_have_tiles_up_to_where_the_kernels_say() -> None:
    assert [most_head_dim(kernel) for kernel in ("forward", "decode", "grad q", "grad kv")] == [
        *(576, 576),
        *(256, 256),
    ]


@pytest.mark.parametrize(
    ("name", "family", "cores"),
    [("M1", 7, 8), ("Apple M2 Max", 8, 38), ("M4 Pro", 9, 20), ("Apple M5", 10, 10)],
)
def test_chips_are_known_by_name(name: str, family: int, cores: int) -> None:
    gpu = Gpu.named(name)
    assert (gpu.family, gpu.cores) == (family, cores)
    assert Gpu.named(name, cores=7).cores == 7


def test_a_later_chip_is_taken_for_the_newest_known_family() -> None:
    assert Gpu.named("Apple M9 Ultra").family == 10


def test_a_name_that_is_no_apple_chip_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Gpu\.named: expected an Apple chip.*'RTX 4090'"):
        Gpu.named("RTX 4090")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_without_an_apple_gpu_the_current_one_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Gpu\.current: .* Gpu\.named\('M1'\)"):
        Gpu.current()


def test_an_m1_and_an_m4_get_different_tiles_for_one_problem() -> None:
    problem, _ = make_inputs(dtype=torch.float16)
    m1, m4 = (
        forward_variant(problem, Loads(8, 8, 8), "simdgroup", runtime(name)).tile
        for name in ("M1", "M4")
    )
    assert m1 is not None
    assert m4 is not None
    assert (m1.owned, m4.owned) == (32, 64)


def test_a_variant_renders_to_ascii_with_a_line_mark_for_each_file() -> None:
    problem, _ = make_inputs(window_right=0, sinks=True)
    variant = forward_variant(problem, Loads(4, 4, 4), "simdgroup", runtime("M1"))
    source = render(variant)
    assert source.isascii()
    assert "constant constexpr bool HAS_SINKS = true;" in source
    assert "constant constexpr bool HAS_BIAS = false;" in source
    assert source.count("#line 1") == 12


def test_auto_never_picks_a_simulated_gpu_but_says_so() -> None:
    problem, _ = make_inputs()
    with metal_runtime(Runtime(lambda source: None, "cpu", Gpu.named("M1"))):
        chosen = plan(problem)
        assert plan(problem, "metal").kernel == "simdgroup"
        assert plan(problem, "metal", "scalar").kernel == "scalar"
    assert chosen.engine != "metal"
    assert dict(chosen.refusals)["metal"].startswith("a simulator serves cpu tensors")


def test_an_explicit_engine_raises_its_reason() -> None:
    problem, _ = make_inputs()
    with pytest.raises(NotImplementedError, match="no Metal runtime serves cpu tensors"):
        plan(problem, "metal")
    wide, _ = make_inputs(head_dim=600)
    with (
        metal_runtime(Runtime(lambda source: None, "cpu", Gpu.named("M1"))),
        pytest.raises(NotImplementedError, match="head dims up to 576; got D=600"),
    ):
        plan(wide, "metal")


def test_gradients_come_from_the_forwards_engine_or_the_next() -> None:
    problem = make_inputs()[0]._replace(needs_grad=True)
    assert plan(problem)[0::4] == ("stock", "stock")
    assert plan(problem._replace(dtype=torch.float64))[0::4] == ("stock", "portable")
    assert plan(problem._replace(softcap=2.0))[0::4] == ("portable", "portable")
    with pytest.raises(NotImplementedError, match="impl='stock'.*log-sum-exp"):
        plan(problem._replace(dtype=torch.float64), "stock")


def test_gradients_of_a_cache_are_those_of_the_reference() -> None:
    problem = make_inputs(batch=2, page_size=16)[0]._replace(needs_grad=True)
    assert plan(problem)[0::4] == ("reference", "reference")
    assert "paged" in plan(problem).why
    with pytest.raises(NotImplementedError, match="impl='portable'.*paged"):
        plan(problem, "portable")
