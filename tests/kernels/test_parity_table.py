"""The parity table that the window-and-sinks kernels of metal-flash-sdpa were accepted by.

fp16 against an fp32-or-better reference: cosine 1.000000 and largest error 1e-4. The table does not
state its inputs; an error of 1e-4 in fp16 implies outputs below 0.25, so these have deviation 0.25.
"""

from __future__ import annotations

import pytest
import torch

from flashmetal.reference import attention_reference
from flashmetal.testing import make_inputs

from .simulated import simulated_forward

ROWS = {
    "full attention": {},
    "sliding window (64, 64)": {"window_left": 64, "window_right": 64},
    "attention sink only": {"sinks": True},
    "window + sink": {"window_left": 64, "window_right": 64, "sinks": True},
    "+ GQA (H=8, Hkv=2)": {
        "window_left": 64,
        "window_right": 64,
        "sinks": True,
        "heads_q": 8,
        "heads_k": 2,
    },
    "H=14, Hkv=2, win=127, sink": {
        "window_left": 127,
        "window_right": 127,
        "sinks": True,
        "heads_q": 14,
        "heads_k": 2,
    },
}


@pytest.mark.parametrize("row", ROWS)
def test_parity_row(row: str) -> None:
    shape = {"seqlen_q": 256, "seqlen_k": 256, "heads_q": 4, "heads_k": 4, "head_dim": 64}
    problem, inputs = make_inputs(**{**shape, **ROWS[row]}, dtype=torch.float16)
    for tensor in inputs[:3]:
        tensor.mul_(0.25)
    o, _ = simulated_forward(problem, inputs)
    expected, _ = attention_reference(problem, inputs, compute_dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(o.double().flatten(), expected.flatten(), dim=0)
    assert f"{cosine:.6f}" == "1.000000"
    assert (o.double() - expected).abs().max() <= 1e-4
