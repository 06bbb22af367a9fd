"""Bugs found in other packages, each as a test that our kernels must pass.

Every name says whose bug and what went wrong there.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from .simulated import bits, simulated_forward

KERNELS = pytest.mark.parametrize("kernel", ["simdgroup", "scalar"])
SHAPE = {"seqlen_q": 40, "seqlen_k": 56, "heads_q": 2, "heads_k": 1, "head_dim": 32}


@KERNELS
def test_metal_flash_sdpa_softcap_saw_log2_scores_and_unmasked_keys(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, softcap=1.5, window_right=0)
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@KERNELS
def test_metal_flash_sdpa_had_no_guard_for_fully_masked_rows(kernel: str) -> None:
    shape = {**SHAPE, "seqlen_q": 56, "seqlen_k": 40}
    problem, inputs = make_inputs(**shape, window_right=0)
    o, lse = simulated_forward(problem, inputs, kernel=kernel)
    assert torch.all(o[:, :16] == 0)
    assert torch.all(lse[..., :16] == -math.inf)
    assert_matches_reference(o, lse, problem, inputs)


@KERNELS
def test_metal_flash_sdpa_and_torch_decode_multiplied_offsets_in_32_bits(kernel: str) -> None:
    # The last rows of k and v lie past 2^31 elements; untouched pages take no memory.
    problem, inputs = make_inputs(**SHAPE, dtype=torch.float16)
    stride = 2**31 // (problem.seqlen_k - 2)
    far = []
    for near in (inputs.k, inputs.v):
        storage = torch.from_numpy(np.zeros(stride * problem.seqlen_k, np.float16))
        view = storage.as_strided(near.shape, (0, stride, problem.head_dim, 1))
        far.append(view.copy_(near))
    moved = inputs._replace(k=far[0], v=far[1])
    expected = simulated_forward(problem, inputs, kernel=kernel)
    actual = simulated_forward(problem, moved, kernel=kernel)
    assert all(map(torch.equal, bits(*expected), bits(*actual)))


@KERNELS
def test_mtlflashattn_summed_scores_in_half_and_overflowed(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, dtype=torch.float16)
    # |q.k| is far past 65504, the largest half; the scale brings it back.
    inputs = inputs._replace(q=(inputs.q * 300).contiguous(), k=(inputs.k * 300).contiguous())
    problem = problem._replace(scale=1e-5)
    assert (inputs.q.float()[0, :, 0] @ inputs.k.float()[0, :, 0].T).abs().max() > 65504
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@KERNELS
def test_attention_mps_torch_ignored_storage_offsets_and_strides(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, strided=True)
    assert inputs.q.storage_offset() > 0
    assert not inputs.q.is_contiguous()
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@KERNELS
def test_mps_flash_attn_turned_additive_biases_into_bools(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, bias=True)
    o, lse = simulated_forward(problem, inputs, kernel=kernel)
    assert_matches_reference(o, lse, problem, inputs)
    without = inputs._replace(bias=torch.zeros_like(inputs.bias))
    assert not torch.equal(o, simulated_forward(problem, without, kernel=kernel)[0])


@KERNELS
def test_mps_flash_sdpa_remembered_masks_by_address(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, bias=True)
    simulated_forward(problem, inputs, kernel=kernel)
    inputs.bias.neg_()  # same buffer, other values
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@KERNELS
def test_mtlattn_ignored_the_right_bound_of_a_window(kernel: str) -> None:
    problem, inputs = make_inputs(**SHAPE, window_left=4, window_right=2)
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@KERNELS
def test_torch_kept_top_left_causal_for_unequal_lengths(kernel: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 1}, window_right=0)
    o, lse = simulated_forward(problem, inputs, kernel=kernel)
    full = problem._replace(window_right=-1)  # the one query stands at the end and sees every key
    expected = simulated_forward(full, inputs, kernel=kernel)
    assert all(map(torch.equal, bits(o, lse), bits(*expected)))


def test_torch_2_12_corrupted_unequal_value_head_dims() -> None:
    problem, inputs = make_inputs(**{**SHAPE, "head_dim": 96, "head_dim_v": 64})
    assert_matches_reference(*simulated_forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize("kernel", ["simdgroup", "decode"])
def test_mtlflashattn_and_torch_made_a_kernel_of_every_length(kernel: str) -> None:
    """And Hugging Face's metal-flash-sdpa a pipeline at every call."""
    sources: list[str] = []
    compiled: list[int] = []

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        sources.append(source)
        return metalsim.compile_shader(source)

    rows = 2 if kernel == "decode" else 40
    with metal_runtime(Runtime(compile_shader, "cpu", Gpu.named("M1", cores=1))):
        for longer in (0, 0, 1, 7, 100):
            fields = {**SHAPE, "seqlen_q": rows, "seqlen_k": 56 + longer, "dtype": torch.float16}
            problem, inputs = make_inputs(**fields, window_right=0)
            o, lse = metal.forward(problem._replace(num_splits=2), inputs, kernel=kernel)
            if kernel != "decode":
                kept = QueryRows(o, lse, *make_output_gradients(o, lse))
                metal.backward(problem, inputs, kept, differentiable(inputs))
            compiled.append(len(sources))
    assert set(compiled) == {2 if kernel == "decode" else 4}
