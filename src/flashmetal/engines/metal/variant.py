"""The compile-time facts of one kernel, and the MSL source they render to.

``compile_shader`` offers no function constants: a variant is source text. The prelude declares the
facts as constants, the real files follow unchanged, and bodies say ``if (HAS_BIAS)``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

import torch

from ...problem import AttentionProblem
from ...tiles import Tile
from . import bindings, msl, params

MSL_TYPES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}

# Headers in the order in which they build on each other.
_SHARED = ("sequence.h", "mask.h", "score.h", "random.h")
_FORWARD = (*_SHARED, "softmax.h", "epilogue.h")
_BACKWARD = (*_SHARED, "gradient.h", "tile.h")
_FILES = {
    "attention_forward": (*_FORWARD, "tile.h", "attention_forward.metal"),
    "attention_forward_scalar": (*_FORWARD, "attention_forward_scalar.metal"),
    "attention_backward_delta": ("attention_backward_delta.metal",),
    "attention_backward_q": (*_BACKWARD, "attention_backward_q.metal"),
    "attention_backward_kv": (*_BACKWARD, "attention_backward_kv.metal"),
    "attention_backward_bias": (*_BACKWARD, "attention_backward_bias.metal"),
}


class KernelVariant(NamedTuple):
    """One kernel as compiled. ``vector`` is the elements in one device load of q, k and v."""

    kernel: str
    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    tile: Tile | None
    vector: int
    has_window_left: bool
    has_window_right: bool
    has_softcap: bool
    bias_dtype: torch.dtype | None
    has_alibi: bool
    has_sinks: bool
    is_varlen: bool
    has_seqused_k: bool
    has_dropout: bool = False
    has_grad_lse: bool = False

    @property
    def has_bias(self) -> bool:
        return self.bias_dtype is not None


def variant_of(
    problem: AttentionProblem, kernel: str, tile: Tile | None, vector: int
) -> KernelVariant:
    """The facts of ``kernel`` for ``problem``; only tile kernels make use of ``vector``."""
    return KernelVariant(
        kernel=kernel,
        dtype=problem.dtype,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        tile=tile,
        vector=vector if tile is not None else 1,
        # A window as long as the sequences masks nothing.
        has_window_left=0 <= problem.window_left < problem.seqlen_k - 1,
        has_window_right=0 <= problem.window_right < problem.seqlen_q - 1,
        has_softcap=problem.softcap > 0.0,
        bias_dtype=problem.bias_dtype,
        has_alibi=problem.alibi is not None,
        has_sinks=problem.sinks,
        is_varlen=problem.layout == "varlen",
        has_seqused_k=problem.seqused_k,
        has_dropout=problem.dropout_p > 0.0,
    )


@cache
def _file(name: str) -> str:
    return (resources.files(msl) / name).read_text(encoding="ascii")


def render(variant: KernelVariant) -> str:
    """The whole MSL source of one variant; ``#line`` marks name the real files."""
    files = "".join(f'#line 1 "{name}"\n{_file(name)}' for name in _FILES[variant.kernel])
    return f"{_prelude(variant)}{files}"


def _prelude(variant: KernelVariant) -> str:
    flags = {
        "HAS_WINDOW_LEFT": variant.has_window_left,
        "HAS_WINDOW_RIGHT": variant.has_window_right,
        "HAS_SOFTCAP": variant.has_softcap,
        "HAS_BIAS": variant.has_bias,
        "HAS_ALIBI": variant.has_alibi,
        "HAS_SINKS": variant.has_sinks,
        "IS_VARLEN": variant.is_varlen,
        "HAS_SEQUSED_K": variant.has_seqused_k,
        "HAS_DROPOUT": variant.has_dropout,
        "HAS_GRAD_LSE": variant.has_grad_lse,
    }
    sizes = {"HEAD_DIM": variant.head_dim, "HEAD_DIM_V": variant.head_dim_v}
    if variant.tile is not None:
        flags["OWNED_IN_REGISTERS"] = variant.tile.owned_in_registers
        sizes |= {
            "ROWS": variant.tile.rows,
            "SIMDGROUPS": variant.tile.simdgroups,
            "STREAMED": variant.tile.streamed,
            "VECTOR": variant.vector,
        }
    element = MSL_TYPES[variant.dtype]
    bias_element = MSL_TYPES[variant.bias_dtype or variant.dtype]
    lines = [
        "#include <metal_stdlib>",
        "#include <metal_simdgroup_matrix>",
        "using namespace metal;",
        "",
        f"typedef {element} Element;",
        f"typedef {bias_element} BiasElement;",
        *(f"constant constexpr bool {name} = {str(on).lower()};" for name, on in flags.items()),
        *(f"constant constexpr int {name} = {value};" for name, value in sizes.items()),
    ]
    structs = params.structs(backward=variant.kernel.startswith("attention_backward"))
    return "\n".join(lines) + f"\n\n{structs}\n{bindings.declarations(variant)}\n"
