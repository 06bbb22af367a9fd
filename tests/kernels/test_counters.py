"""What the tile kernel costs, read from the simulator's counters, against what it may cost."""

from __future__ import annotations

import pytest
import torch

from flashmetal.engines import metal
from flashmetal.engines.metal.tiles import tile_of
from flashmetal.gradients import QueryRows
from flashmetal.testing import make_inputs

from ..features import in_turn
from .simulated import TILE_GPUS, counted, counted_forward, simulated_forward

# One shape for all bounds: B1 H2 S256 D64 fp16, full attention.
SHAPE = {"seqlen_q": 256, "seqlen_k": 256, "heads_q": 2, "heads_k": 2, "head_dim": 64}


def minimum_multiplies(seqlen_q: int, seqlen_k: int, head_dim: int, heads: int) -> int:
    """8x8x8 multiplies of S = Q K^T and O = P V over every fragment."""
    return heads * (seqlen_q // 8) * (seqlen_k // 8) * (2 * head_dim // 8)


@pytest.mark.parametrize("gpu", TILE_GPUS)
def test_full_attention_stays_within_its_bytes_and_multiplies(gpu: str) -> None:
    counters = counted_forward(*make_inputs(**SHAPE, dtype=torch.float16), gpu=gpu)
    assert counters["matrix_multiplies"] == minimum_multiplies(256, 256, 64, 2) == 32_768
    assert counters["device_bytes_loaded"] <= 1_120_000
    assert counters["threadgroup_bytes_loaded"] <= 4_700_000
    assert counters["threadgroup_bytes_stored"] <= 1_100_000


@pytest.mark.parametrize("gpu", TILE_GPUS)
def test_two_barriers_a_key_block(gpu: str) -> None:
    problem, inputs = make_inputs(**SHAPE, dtype=torch.float16)
    counters = counted_forward(problem, inputs, gpu=gpu)
    tile = tile_of("forward", 7 if gpu == "M1" else 9, 2, 64, 64)
    visits = 2 * (256 // tile.owned) * (256 // tile.streamed)
    assert counters["threadgroup_barriers"] == 2 * visits


@pytest.mark.parametrize("head_dim", [40, 72, 80, 96, 112, 160, 192, 256])
def test_padding_a_head_dim_costs_no_multiply_beyond_its_fragments(head_dim: int) -> None:
    shape = {**SHAPE, "seqlen_q": 64, "seqlen_k": 64, "heads_q": 1, "heads_k": 1}
    counters = counted_forward(*make_inputs(**{**shape, "head_dim": head_dim}))
    padded = -(-head_dim // 8) * 8
    assert counters["matrix_multiplies"] == minimum_multiplies(64, 64, padded, 1)


@pytest.mark.parametrize("gpu", TILE_GPUS)
def test_causal_visits_only_the_blocks_of_its_band(gpu: str) -> None:
    problem, inputs = make_inputs(**SHAPE, window_right=0, dtype=torch.float16)
    counters = counted_forward(problem, inputs, gpu=gpu)
    tile = tile_of("forward", 7 if gpu == "M1" else 9, 2, 64, 64)
    fragments = 0
    for first_row in range(0, 256, tile.rows):
        blocks = -(-(first_row + tile.rows) // tile.streamed)
        fragments += (tile.rows // 8) * blocks * (tile.streamed // 8)
    assert counters["matrix_multiplies"] == 2 * fragments * (2 * 64 // 8)


def test_a_window_of_128_of_16384_costs_under_two_percent_of_full_attention() -> None:
    shape = {**SHAPE, "seqlen_q": 16_384, "seqlen_k": 16_384, "heads_q": 1, "heads_k": 1}
    problem, inputs = make_inputs(**shape, window_left=128, window_right=0)
    counters = counted_forward(problem, inputs)
    full = minimum_multiplies(16_384, 16_384, 64, 1)
    assert counters["matrix_multiplies"] < 0.02 * full


BANDS = {
    "full": {},
    "causal": {"window_right": 0},
    "window": {"window_left": 32, "window_right": 0},
}


@pytest.mark.parametrize(("name", "gpu"), in_turn(BANDS, TILE_GPUS))
def test_backward_makes_seven_products_of_the_visible_tiles(name: str, gpu: str) -> None:
    band = BANDS[name]
    problem, inputs = make_inputs(**SHAPE, **band, dtype=torch.float16)
    o, lse = simulated_forward(problem, inputs, gpu=gpu)
    with counted(gpu) as counters:
        metal.backward(problem, inputs, QueryRows(o, lse, o), ("q", "k", "v"))
    least = 0
    for kernel, products in (("grad q", 3), ("grad kv", 4)):
        tile = tile_of(kernel, 7 if gpu == "M1" else 9, 2, 64, 64)
        for owned in range(0, 256, tile.rows):
            for streamed in range(0, 256, tile.streamed):
                rows, keys = (owned, tile.rows), (streamed, tile.streamed)
                if kernel == "grad kv":
                    rows, keys = keys, rows
                if is_visible(rows, keys, band):
                    least += products * (tile.rows // 8) * (tile.streamed // 8) * (64 // 8)
    assert counters["matrix_multiplies"] == 2 * least


def is_visible(rows: tuple[int, int], keys: tuple[int, int], band: dict[str, int]) -> bool:
    """Whether any pair of the rows and keys, each (first, count), lies in the band."""
    right, left = band.get("window_right", 1000), band.get("window_left", 1000)
    return keys[0] <= rows[0] + rows[1] - 1 + right and keys[0] + keys[1] - 1 >= rows[0] - left
