"""Short launches of the forward kernels in the simulator: any tile, and a plain one to compare."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from kernel_counters import Recorder
from torch import Tensor

from flashmetal.engines.metal import Gpu, Runtime
from flashmetal.engines.metal.bindings import bound
from flashmetal.engines.metal.cooperative import layout_of
from flashmetal.engines.metal.launch import Addresses, loads_of
from flashmetal.engines.metal.params import Geometry, pack_integers, pack_scalars
from flashmetal.engines.metal.tiles import THREADGROUP_BYTES, Tile
from flashmetal.engines.metal.variant import Loads, render, variant_of
from flashmetal.problem import AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.request import AttentionInputs
from flashmetal.testing import assert_matches_reference

_PLAIN = Path(__file__).parent / "plain" / "attention_plain.metal"
_SCALAR = "attention_forward_scalar"


class Kernel(NamedTuple):
    """A forward kernel: the product's with some tile, or the plain one."""

    name: str
    tile: Tile
    is_plain: bool = False


class Launched(NamedTuple):
    """One launch: its counters, threadgroup memory of one threadgroup, and o's largest error."""

    counters: dict[str, int]
    threadgroup_bytes: int
    error: float


def launched(
    kernel: Kernel, problem: AttentionProblem, inputs: AttentionInputs, recorder: Recorder
) -> Launched:
    """Run a kernel on a dense or packed problem and return what it counted.

    AssertionError where the result is not within the budget around the reference. The plain kernel
    sums in half, which no budget allows: its source is held to float32's, on the same numbers.
    """
    sums_in_half = kernel.is_plain and problem.dtype != torch.float32
    if sums_in_half:
        q, k, v = (x.float() for x in inputs[:3])
        single = problem._replace(dtype=torch.float32), inputs._replace(q=q, k=k, v=v)
        launched(plain_kernel(4, problem.head_dim, problem.head_dim_v), *single, recorder)
    o, lse = _run(kernel, problem, inputs, recorder)
    if not sums_in_half:
        assert_matches_reference(o, lse, problem, inputs)
    exact, _ = attention_reference(problem, inputs, compute_dtype=torch.float64)
    last = recorder.launches[-1]
    recorder.launches.clear()
    error = float((o.double() - exact).abs().max())
    return Launched(last["counters"], last["threadgroup_bytes"], error)


def _run(
    kernel: Kernel, problem: AttentionProblem, inputs: AttentionInputs, recorder: Recorder
) -> tuple[Tensor, Tensor]:
    q, k, v = inputs[:3]
    geometry = Geometry(q.stride(), k.stride(), v.stride(), None, q.shape[-3])
    source, name, names = _source(kernel, problem, geometry, recorder)
    o = q.new_full((*q.shape[:-1], problem.head_dim_v), torch.nan)
    dense = q.dim() == 4
    lse_shape = (q.shape[0], q.shape[2], q.shape[1]) if dense else (q.shape[1], q.shape[0])
    lse = q.new_full(lse_shape, torch.nan, dtype=torch.float32)
    operands = {**inputs._asdict(), "o": o, "lse": lse}
    blocks = -(-problem.seqlen_q // kernel.tile.owned)
    getattr(recorder.compile_shader(source), name)(
        *(operands[name] for name in names),
        pack_integers(problem, geometry),
        pack_scalars(problem),
        threads=(blocks * kernel.tile.threads, problem.heads_q, problem.batch),
        group_size=(kernel.tile.threads, 1, 1),
    )
    return o, lse


def _source(
    kernel: Kernel, problem: AttentionProblem, geometry: Geometry, recorder: Recorder
) -> tuple[str, str, tuple[str, ...]]:
    """The MSL of a kernel, its name, and the names of the buffers it binds."""
    if kernel.is_plain:
        variant = variant_of(problem, _SCALAR, None, Loads())
        shared = render(variant).partition(f'#line 1 "{_SCALAR}.metal"')[0]
        facts = {"OWNED": kernel.tile.owned, "STREAMED": kernel.tile.streamed}
        sizes = "".join(f"constant constexpr int {n} = {x};\n" for n, x in facts.items())
        body = f'#line 1 "{_PLAIN.name}"\n{_PLAIN.read_text(encoding="ascii")}'
        return f"{shared}{sizes}{body}", "attention_plain", bound(variant)
    loads = loads_of(problem, geometry, Addresses(0, 0, 0))
    variant = variant_of(problem, "attention_forward", kernel.tile, loads)
    if kernel.tile.unit == "tensor":
        runtime = Runtime(recorder.compile_shader, "cpu", Gpu.named("M5"))
        variant = variant._replace(layout=layout_of(runtime, problem.dtype))
    return render(variant), variant.kernel, bound(variant)


def plain_kernel(element_bytes: int, head_dim: int, head_dim_v: int) -> Kernel:
    """The plain kernel with the most rows and keys a block that threadgroup memory has room for.

    Q and a block of K or V with 16 bytes of padding a row, and a block of scores.
    """
    row = max(-(-dim // 8) * 8 for dim in (head_dim, head_dim_v)) * element_bytes + 16
    for simdgroups, streamed in ((4, 32), (4, 16), (4, 8), (2, 8), (1, 8)):
        owned = 8 * simdgroups
        scores = owned * (streamed * element_bytes + 16) + simdgroups * 64 * element_bytes
        if (owned + streamed) * row + scores <= THREADGROUP_BYTES:
            return Kernel("plain", Tile(streamed, 8, simdgroups, False), is_plain=True)
    raise ValueError(f"the plain kernel has no tile for D={head_dim}, Dv={head_dim_v}")
