"""The calls the tests of all engines share: every feature of the contract, alone and together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import cycle, product
from typing import Any

import pytest
import torch

# Where the engines' tests run: FLASHMETAL_TEST_DEVICE=cuda takes them to a GPU.
DEVICE = os.environ.get("FLASHMETAL_TEST_DEVICE", "cpu")
LONG = pytest.mark.long
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SHAPE: dict[str, Any] = {
    "seqlen_q": 37,
    "seqlen_k": 70,
    "heads_q": 4,
    "heads_k": 2,
    "head_dim": 32,
    "device": DEVICE,
}
FULL_OR_CAUSAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch": {"batch": 3},
    "causal": {"window_right": 0},
    "causal, square": {"seqlen_k": 37, "window_right": 0},
    "causal, more rows than keys": {"seqlen_k": 20, "window_right": 0},
    "causal, one row": {"seqlen_q": 1, "window_right": 0},
    "sinks": {"sinks": True, "window_right": 0},
    "no rows": {"seqlen_q": 0},
    "no keys": {"seqlen_k": 0},
    "no keys but sinks": {"seqlen_k": 0, "sinks": True},
    "scale": {"scale": 0.7},
    "varlen": {"lengths_q": (5, 0, 37, 1), "lengths_k": (40, 7, 70, 0), "window_right": 0},
    "varlen, used": {"lengths_q": (5, 3), "lengths_k": (40, 7), "seqused_k": (8, 0), "sinks": True},
    "seqused_k": {"batch": 3, "seqused_k": (70, 0, 33), "window_right": 0, "sinks": True},
    "strided": {"batch": 2, "strided": True, "poison": True, "window_right": 0},
    "multi-query": {"heads_q": 5, "heads_k": 1, "window_right": 0},
}
FEATURES: dict[str, dict[str, Any]] = {
    **FULL_OR_CAUSAL,
    "window": {"window_left": 11, "window_right": 4},
    "window of one key": {"window_left": 0, "window_right": 0},
    "left window": {"window_left": 9},
    "right window": {"window_right": 3},
    "window, more rows than keys": {"seqlen_k": 20, "window_left": 3, "window_right": 2},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "alibi by batch": {"batch": 2, "alibi": "batch_head", "window_right": 0},
    "bias": {"batch": 2, "bias": True},
    "bias by head": {"batch": 2, "bias": (True, False, True)},
    "bias by row": {"batch": 2, "bias": (False, True, False), "bias_dtype": torch.float32},
    "value dimension": {"head_dim": 24, "head_dim_v": 40},
    "odd dimension": {"head_dim": 1, "head_dim_v": 3},
    "everything": {
        "batch": 2,
        "window_left": 30,
        "window_right": 5,
        "softcap": 3.0,
        "alibi": True,
        "bias": True,
        "sinks": True,
        "seqused_k": (70, 41),
    },
    "everything, packed": {
        "lengths_q": (5, 0, 37, 1),
        "lengths_k": (40, 7, 70, 0),
        "window_left": 30,
        "window_right": 5,
        "softcap": 3.0,
        "alibi": "batch_head",
        "bias": (False, True, False),
        "sinks": True,
    },
}
PADDED: dict[str, dict[str, Any]] = {
    "left padding": {"batch": 2, "leftpad_k": (0, 9), "seqused_k": (70, 41), "window_left": 30},
    "left padding, everything": {
        "batch": 2,
        "leftpad_k": (3, 21),
        "window_right": 5,
        "softcap": 2.0,
        "alibi": "batch_head",
        "bias": True,
    },
}
CACHES: dict[str, dict[str, Any]] = {
    **PADDED,
    "pages": {"page_size": 16, "window_right": 0},
    "pages of one key": {"page_size": 1, "batch": 2},
    "pages, batch": {"page_size": 8, "batch": 3, "seqused_k": (70, 0, 33), "sinks": True},
    "pages, one row": {"page_size": 8, "batch": 3, "seqlen_q": 1, "seqused_k": (70, 1, 33)},
    "pages, varlen": {
        "page_size": 16,
        "lengths_q": (5, 0, 37, 1),
        "lengths_k": (40, 7, 70, 0),
        "window_right": 0,
    },
    "long pages": {"page_size": 300, "batch": 2, "seqused_k": (70, 41), "window_left": 9},
    "pages, left padding": {"page_size": 8, "batch": 2, "leftpad_k": (0, 9), "alibi": True},
    "int8": {"k_format": "int8", "v_format": "int8", "window_right": 0},
    "fp8": {"k_format": "fp8", "v_format": "fp8", "batch": 2, "seqused_k": (70, 3)},
    "int4": {"k_format": "int4", "v_format": "int4", "lengths_q": (5, 3), "lengths_k": (40, 7)},
    "int8 keys, int4 values, pages": {"k_format": "int8", "v_format": "int4", "page_size": 8},
    "dense keys, fp8 values, pages": {"v_format": "fp8", "page_size": 32, "head_dim_v": 40},
    "everything, in pages": {
        "batch": 2,
        "page_size": 8,
        "k_format": "int8",
        "v_format": "int4",
        "window_left": 30,
        "window_right": 5,
        "softcap": 3.0,
        "alibi": "batch_head",
        "bias": (False, True, False),
        "sinks": True,
        "seqused_k": (70, 41),
        "leftpad_k": (3, 20),
    },
}
DROPOUT: dict[str, dict[str, Any]] = {
    "dropout": {"dropout_p": 0.2, "batch": 2},
    "dropout, causal": {"dropout_p": 0.5, "window_right": 0, "sinks": True},
    "dropout, packed": {
        "dropout_p": 0.3,
        "lengths_q": (5, 0, 37, 1),
        "lengths_k": (40, 7, 70, 0),
        "window_left": 30,
        "softcap": 2.0,
    },
    "dropout, bias": {"dropout_p": 0.1, "bias": (True, False, True), "alibi": True},
}
TRAINING = FEATURES | PADDED | DROPOUT  # what has gradients: caches have none


def in_turn(
    calls: Iterable[Any], options: Sequence[Any], short: Iterable[Any] | None = None
) -> list[Any]:
    """(call, option) for parametrize, all pairs: those past one option a call are long.

    ``short`` are the calls that the short run has, all by default; options, as dtypes or GPUs, take
    turns among them.
    """
    calls = list(calls)
    chosen = list(zip(calls if short is None else short, cycle(options), strict=False))
    return [
        pytest.param(*pair, id=f"{pair[0]}-{pair[1]}", marks=() if pair in chosen else LONG)
        for pair in product(calls, options)
    ]
