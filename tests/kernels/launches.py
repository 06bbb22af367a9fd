"""Small launches of every Metal kernel, for the tests that hold for all of them.

A new kernel joins with one line of LAUNCHES; without one, `test_barrier_mutation` and
`test_schedules` fail. Each launch spans several blocks of rows and of keys, so that what happens
between blocks happens.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

import metalsim
from flashmetal.cache.testing_append import make_append
from flashmetal.engines import metal
from flashmetal.engines.metal import Runtime, metal_runtime
from flashmetal.gradients import QueryRows
from flashmetal.reference import attention_reference
from flashmetal.testing import differentiable, make_inputs, make_output_gradients
from metalsim.buffer_files import read_buffer

from .simulated import gpu_of

CompileShader = Callable[[str], Any]  # a library of kernels
SHAPE: dict[str, Any] = {"seqlen_q": 50, "seqlen_k": 70, "head_dim": 16, "heads_q": 2, "heads_k": 1}


class Idle:
    """A compiled library whose kernels do nothing, for tests of what is compiled."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


class Launch(NamedTuple):
    """A call of an engine; `fields` are those of make_inputs."""

    call: Callable[[dict[str, Any]], tuple[Tensor, ...]]
    fields: dict[str, Any] = {}  # noqa: RUF012
    gpu: str = "M1"
    layout: str = "apple10"  # of cooperative tensors

    def run(self, compile_shader: CompileShader) -> tuple[Tensor, ...]:
        """The results of the real kernels, as `compile_shader` makes them."""
        layout = patch.dict(os.environ, METALSIM_COOPERATIVE_LAYOUT=self.layout)
        with layout, metal_runtime(Runtime(compile_shader, "cpu", gpu_of(self.gpu))):
            return self.call({**SHAPE, **self.fields})

    def sources(self) -> list[str]:
        """What the launch compiles."""
        found: list[str] = []

        def compile_shader(source: str) -> Idle:
            found.append(source)
            return Idle()

        self.run(compile_shader)
        return found


def tile(fields: dict[str, Any], kernel: str = "simdgroup") -> tuple[Tensor, ...]:
    problem, inputs = make_inputs(**fields)
    o = inputs.q.new_full((*inputs.q.shape[:-1], problem.head_dim_v), math.nan)
    return metal.forward(problem, inputs, o, kernel=kernel)


def tensor(fields: dict[str, Any]) -> tuple[Tensor, ...]:
    return tile(fields, "tensor")


def scalar(fields: dict[str, Any]) -> tuple[Tensor, ...]:
    return tile(fields, "scalar")


def decode(fields: dict[str, Any]) -> tuple[Tensor, ...]:
    """In two parts, which a second launch combines."""
    problem, inputs = make_inputs(**fields)
    return metal.forward(problem._replace(num_splits=2), inputs, kernel="decode")


def append(fields: dict[str, Any]) -> tuple[Tensor, ...]:
    del fields
    formats = {"k_format": "int8", "v_format": "int4", "page_size": 8}
    problem, inputs = make_append(dtype=torch.float16, rotary_dim=32, **formats)
    q = metal.append(problem, inputs)
    results = (q, inputs.k_cache, inputs.v_cache, inputs.k_scale, inputs.v_scale)
    return tuple(x for x in results if x is not None)


def tensor_gradients(fields: dict[str, Any]) -> tuple[Tensor, ...]:
    return gradients(fields, "tensor")


def gradients(fields: dict[str, Any], kernel: str = "simdgroup") -> tuple[Tensor, ...]:
    problem, inputs = make_inputs(**fields)
    o, lse = attention_reference(problem, inputs)
    rows = QueryRows(o, lse, *make_output_gradients(o, lse, through_lse=False))
    made = metal.backward(problem, inputs, rows, differentiable(inputs), kernel)
    return tuple(x for x in made if x is not None)


VARLEN = {"lengths_q": (5, 0, 33), "lengths_k": (40, 7, 64), "window_right": 0}
PAGES = {"head_dim": 32, "page_size": 8, "batch": 2, "seqused_k": (70, 41)}
# First those with teams and unknown layouts, whose barriers no other launch reaches.
LAUNCHES: dict[str, Launch] = {
    "tile, head dim 320": Launch(tile, {"head_dim": 320, "seqlen_q": 33, "seqlen_k": 40}),
    "backward, head dim 192": Launch(
        gradients, {"head_dim": 192, "bias": True, "seqlen_q": 33, "seqlen_k": 40}
    ),
    "decode, head dim 320": Launch(decode, {"seqlen_q": 1, "head_dim": 320, "seqlen_k": 150}),
    "tensor, unknown layout": Launch(tensor, {"head_dim": 40}, "M5", "random:1"),
    "tensor, head dim 192": Launch(tensor, {"head_dim": 192}, "M5"),
    "tile": Launch(tile),
    "tile, M3": Launch(tile, {"dtype": torch.float16}, "M3"),
    "tile, causal": Launch(tile, {"window_right": 0, "heads_q": 4, "heads_k": 2}),
    "tile, window and sinks": Launch(tile, {"window_left": 20, "window_right": 5, "sinks": True}),
    "tile, varlen": Launch(tile, VARLEN),
    "tile, head dim 256": Launch(tile, {"head_dim": 256, "seqlen_q": 33, "seqlen_k": 40}),
    "tensor": Launch(tensor, {"dtype": torch.float16, "window_right": 0}, "M5"),
    "scalar": Launch(scalar, {"window_right": 0, "sinks": True}),
    "scalar, varlen": Launch(scalar, VARLEN),
    "tile, pages": Launch(tile, {**PAGES, "k_format": "int8", "v_format": "int4"}),
    "decode": Launch(decode, {"seqlen_q": 1, "heads_q": 4}),
    "decode, pages": Launch(decode, {**PAGES, "seqlen_q": 3, "k_format": "fp8"}),
    "append": Launch(append),
    "backward, bias": Launch(gradients, {"bias": True}),
    "backward, bias over batch and rows": Launch(
        gradients, {"batch": 2, "bias": (True, False, True), "dropout_p": 0.2}
    ),
    "backward, M3": Launch(gradients, {"dtype": torch.float16, "window_right": 0}, "M3"),
    "backward, varlen": Launch(gradients, {**VARLEN, "sinks": True, "alibi": True}),
    "backward, head dim 128": Launch(gradients, {"head_dim": 128}),
    "backward, tensor": Launch(tensor_gradients, {"dtype": torch.float16, "bias": True}, "M5"),
}

GALLERY = Path(metalsim.__file__).parents[2] / "gallery"


class GalleryLaunch(NamedTuple):
    """A launch of a kernel of metalsim's gallery."""

    file: str
    kernel: str
    arguments: tuple[str | np.generic | np.ndarray, ...]  # words as `metalsim run` takes them
    threads: tuple[int, ...]
    group: tuple[int, ...]

    def run(self, compile_shader: CompileShader) -> tuple[Tensor, ...]:
        """The content of every array after the launch."""
        library = compile_shader((GALLERY / f"{self.file}.metal").read_text())
        values = [
            read_buffer(slot, argument).value if isinstance(argument, str) else argument
            for slot, argument in enumerate(self.arguments)
        ]
        getattr(library, self.kernel)(*values, threads=self.threads, group_size=self.group)
        return tuple(torch.from_numpy(value) for value in values if isinstance(value, np.ndarray))


def sizes(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


GALLERY_LAUNCHES = (
    GalleryLaunch(
        "reduction",
        "reduce_sum",
        ("random:float:999", "zeros:float:4", "uint32:999"),
        (384,),
        (96,),
    ),
    GalleryLaunch(
        "scan",
        "scan_groups",
        ("random:int32:600", "zeros:int32:600", "zeros:int32:3"),
        (600,),
        (256,),
    ),
    GalleryLaunch("scan", "add_totals", ("random:int32:600", "random:int32:3"), (600,), (256,)),
    GalleryLaunch(
        "transpose",
        "transpose",
        ("random:float:50x70", "zeros:float:70x50", sizes(70, 50)),
        (96, 16),
        (32, 8),
    ),
    GalleryLaunch(
        "matmul",
        "matmul",
        ("random:half:33x25", "random:half:25x70", "zeros:float:33x70", sizes(33, 70, 25)),
        (384, 2),
        (128, 1),
    ),
    GalleryLaunch(
        "tensor_matmul",
        "tensor_matmul",
        (
            *("random:half:65x24", "random:half:24x40", "random:float:40", "zeros:float:65x40"),
            sizes(65, 40, 24),
        ),
        (256, 2),
        (128, 1),
    ),
    GalleryLaunch(
        "tensor_attention",
        "tensor_attention",
        (
            *("random:half:70x64", "random:half:75x64", "random:half:75x64", "zeros:float:70x64"),
            np.array([(70, 75, 0.18)], np.dtype("i4,i4,f4")).view(np.uint8),
        ),
        (256,),
        (128,),
    ),
    GalleryLaunch(
        "softmax",
        "softmax_rows",
        ("random:float:2x300", "zeros:float:2x300", "uint32:300"),
        (256,),
        (128,),
    ),
    GalleryLaunch(
        "histogram",
        "histogram",
        ("random:uint8:1000", "zeros:uint32:256", "uint32:1000"),
        (512,),
        (128,),
    ),
    GalleryLaunch(
        "stencil",
        "heat_step",
        ("random:float:37x21", "zeros:float:37x21", "0.125"),
        (21, 37),
        (16, 16),
    ),
    GalleryLaunch("bitonic_sort", "bitonic_sort", ("random:int32:512",), (512,), (256,)),
    GalleryLaunch(
        "matrix_vector",
        "matrix_vector",
        ("random:float:16x33", "random:float:33", "zeros:float:16", "uint32:33"),
        (64,),
        (32,),
    ),
)
