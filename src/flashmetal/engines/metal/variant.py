"""The compile-time facts of one kernel, and the MSL source they render to.

``compile_shader`` offers no function constants: a variant is source text. The prelude declares the
facts as constants, the real files follow unchanged, and bodies say ``if (HAS_BIAS)``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple, Protocol

import torch

from ...cache.formats import FORMATS
from ...problem import AttentionProblem
from . import bindings, msl, params
from .tiles import Tile

MSL_TYPES = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat"}

_CODE_TYPES = {"int8": "char", "fp8": "uchar", "int4": "uchar"}

# Headers in the order in which they build on each other.
_SHARED = ("sequence.h", "mask.h", "key_value.h", "score.h", "random.h")
_TILE = ("lane.h", "tile.h", "streamed.h")
_FORWARD = (*_SHARED, "softmax.h", "epilogue.h")
_BACKWARD = (*_SHARED, "gradient.h", *_TILE)
_TENSOR_TILE = {"tile.h": "tile_tensor_ops.h"}
_FILES = {
    "attention_forward": (*_FORWARD, *_TILE, "attend.h", "attention_forward.metal"),
    "attention_decode": (*_FORWARD, *_TILE, "attend.h", "attention_decode.metal"),
    "attention_combine": ("attention_combine.metal",),
    "attention_forward_scalar": (*_FORWARD, "attention_forward_scalar.metal"),
    "attention_backward_delta": ("attention_backward_delta.metal",),
    "attention_backward_q": (*_BACKWARD, "attention_backward_q.metal"),
    "attention_backward_kv": (*_BACKWARD, "attention_backward_kv.metal"),
    "attention_backward_bias": (*_BACKWARD, "attention_backward_bias.metal"),
    "cache_append": ("cache_append.metal",),
    "cooperative_probe": ("cooperative_probe.metal",),
}


class Variant(Protocol):
    """What can be compiled: facts with a kernel's name and a prelude that declares them in MSL."""

    @property
    def kernel(self) -> str: ...

    @property
    def has_tensor_operations(self) -> bool: ...

    def prelude(self) -> str: ...


class KernelVariant(NamedTuple):
    """One kernel as compiled.

    ``vector``, ``vector_k`` and ``vector_v`` are the elements in one aligned device load of q (and
    what is like it), of k and of v. ``group`` is the query heads a kv head, where they are packed.
    """

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
    has_slope_gradient: bool = False
    page_size: int = 0
    has_leftpad_k: bool = False
    k_format: str = "dense"
    v_format: str = "dense"
    vector_k: int = 1
    vector_v: int = 1
    group: int = 1
    packs_heads: bool = False
    is_split: bool = False
    layout: str = ""  # of cooperative tensors; a tile without tensor operations needs none
    tf32: bool = False

    def __str__(self) -> str:
        """A name for people, as "attention_forward float16 D=64 tensor [window_right, sinks]"."""
        dims = f"D={self.head_dim}" + (f"/{self.head_dim_v}" * (self.head_dim_v != self.head_dim))
        unit = [] if self.tile is None else [self.tile.unit]
        on = [name.removeprefix("has_") for name, value in self._asdict().items() if value is True]
        words = [self.kernel, str(self.dtype).removeprefix("torch."), dims, *unit]
        return " ".join(words) + (f" [{', '.join(on)}]" if on else "")

    @property
    def has_tensor_operations(self) -> bool:
        return self.tile is not None and self.tile.unit == "tensor"

    @property
    def has_bias(self) -> bool:
        return self.bias_dtype is not None

    def prelude(self) -> str:
        return _prelude(self)

    @property
    def has_pages(self) -> bool:
        return self.page_size > 0

    @property
    def has_cu_seqlens_k(self) -> bool:
        return self.is_varlen and not self.has_pages

    @property
    def has_k_scale(self) -> bool:
        return self.k_format != "dense"

    @property
    def has_v_scale(self) -> bool:
        return self.v_format != "dense"


class Loads(NamedTuple):
    """Elements in one aligned load of every row of q (and o and gradients), of k and of v."""

    q: int = 1
    k: int = 1
    v: int = 1


def variant_of(
    problem: AttentionProblem, kernel: str, tile: Tile | None, loads: Loads
) -> KernelVariant:
    """The facts of ``kernel`` for ``problem``; kernels without a tile load element by element."""
    if tile is None:
        loads = Loads()
    return KernelVariant(
        kernel=kernel,
        dtype=problem.dtype,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        tile=tile,
        vector=loads.q,
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
        page_size=problem.page_size,
        has_leftpad_k=problem.leftpad_k,
        k_format=problem.k_format,
        v_format=problem.v_format,
        vector_k=loads.k,
        vector_v=loads.v,
        tf32=problem.tf32 and tile is not None and tile.unit == "tensor",
    )


@cache
def _file(name: str) -> str:
    return (resources.files(msl) / name).read_text(encoding="ascii")


def render(variant: Variant) -> str:
    """The whole MSL source of one variant; ``#line`` marks name the real files."""
    names = _FILES[variant.kernel]
    if variant.has_tensor_operations:
        names = [_TENSOR_TILE.get(name, name) for name in names]
    files = "".join(f'#line 1 "{name}"\n{_file(name)}' for name in names)
    return f"{variant.prelude()}{files}"


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
        "HAS_SLOPE_GRADIENT": variant.has_slope_gradient,
        "HAS_PAGES": variant.has_pages,
        "HAS_LEFTPAD_K": variant.has_leftpad_k,
        "PACKS_HEADS": variant.packs_heads,
    }
    dims, formats = (variant.head_dim, variant.head_dim_v), (variant.k_format, variant.v_format)
    types, sizes = storage_facts(variant.dtype, dims, variant.page_size, formats)
    types["BiasElement"] = MSL_TYPES[variant.bias_dtype or variant.dtype]
    sizes |= {"GROUP": variant.group, "K_VECTOR": variant.vector_k, "V_VECTOR": variant.vector_v}
    if variant.tile is not None:
        flags |= {
            "OWNED_IN_REGISTERS": variant.tile.owned_in_registers,
            "STAGED": variant.tile.staged,
            "KNOWN_LAYOUT": variant.layout != "unknown",
        }
        sizes |= {
            "ROWS": variant.tile.rows,
            "SIMDGROUPS": variant.tile.simdgroups,
            "STREAMED": variant.tile.streamed,
            "TEAM": variant.tile.team,
            "PRODUCTS": 2 if variant.kernel.startswith("attention_backward") else 1,
            "VECTOR": variant.vector,
        }
    if variant.has_tensor_operations:
        flags |= tensor_flags(variant.dtype, variant.layout, variant.tf32)
    structs = params.structs(backward=variant.kernel.startswith("attention_backward"))
    head = declare(types, flags, sizes, variant.has_tensor_operations)
    return f"{head}\n{structs}\n{bindings.declarations(variant)}\n"


def storage_facts(
    dtype: torch.dtype, head_dims: tuple[int, int], page_size: int, formats: tuple[str, str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Types and sizes of rows of k and v, and of the cache that they may lie in."""
    element, (k_format, v_format) = MSL_TYPES[dtype], formats
    types = {
        "Element": element,
        "KeyCode": _CODE_TYPES.get(k_format, element),
        "ValueCode": _CODE_TYPES.get(v_format, element),
    }
    sizes = {
        "HEAD_DIM": head_dims[0],
        "HEAD_DIM_V": head_dims[1],
        "PAGE_SIZE": max(page_size, 1),
        "K_FORMAT": FORMATS.index(k_format),
        "V_FORMAT": FORMATS.index(v_format),
    }
    return types, sizes


def tensor_flags(dtype: torch.dtype, layout: str, tf32: bool) -> dict[str, bool]:
    """What tile_tensor_ops.h must know: relaxed precision rounds float32 operands to TF32."""
    relaxed = tf32 or dtype != torch.float32
    return {"RELAXED": relaxed, "IS_APPLE10_LAYOUT": layout == "apple10"}


def declare(
    types: dict[str, str],
    flags: dict[str, bool],
    sizes: dict[str, int],
    tensor_operations: bool = False,
) -> str:
    """The head of a source: what it includes, and the facts as types and constants."""
    includes = [
        "#include <metal_stdlib>",
        "#include <metal_simdgroup_matrix>",
    ]
    if tensor_operations:
        includes += [
            "#include <metal_tensor>",
            "#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>",
        ]
    lines = [
        *includes,
        "using namespace metal;",
        "",
        *(f"typedef {msl_type} {name};" for name, msl_type in types.items()),
        *(f"constant constexpr bool {name} = {str(on).lower()};" for name, on in flags.items()),
        *(f"constant constexpr int {name} = {value};" for name, value in sizes.items()),
    ]
    return "\n".join(lines) + "\n"
