"""The run-time scalars of a launch, declared once: the MSL structs and the packing come from here.

``torch.mps.compile_shader`` passes a list of ints as an int64 array and a list of floats as a
float32 array, so each struct has one element type and needs no padding rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...problem import AttentionProblem

LOG2E = 1.4426950408889634

INTEGERS = (
    "seqlen_q",  # of a dense batch; packed batches read theirs from cu_seqlens
    "seqlen_k",
    "heads_q",
    "heads_per_kv_head",
    "window_left",
    "window_right",
    "q_stride_batch",  # strides in elements; batch strides are 0 in packed batches
    "q_stride_row",
    "q_stride_head",
    "k_stride_batch",
    "k_stride_row",
    "k_stride_head",
    "v_stride_batch",
    "v_stride_row",
    "v_stride_head",
    "o_stride_batch",
    "lse_stride_batch",
    "lse_stride_head",
    "bias_stride_batch",
    "bias_stride_head",
    "bias_stride_query",
    "bias_stride_key",
    "alibi_stride_batch",
    "dropout_threshold",  # of 65536
    "pages_per_sequence",  # columns of the block table; k and v have pages for batches then
    "k_scale_stride_batch",
    "k_scale_stride_row",
    "k_scale_stride_head",
    "v_scale_stride_batch",
    "v_scale_stride_row",
    "v_scale_stride_head",
    "first_x",  # threadgroup of a launch that does a part of them
    "first_y",
    "first_z",
    "splits",  # over keys, of a decode
    "rows_and_heads",  # rows of q times their heads
)
BACKWARD_INTEGERS = (
    "batch",
    "grad_o_stride_batch",
    "grad_o_stride_row",
    "grad_o_stride_head",
    "grad_q_stride_batch",  # gradients are contiguous: their other strides are known
    "grad_k_stride_batch",
    "grad_v_stride_batch",
    "bias_batches",  # the shape of the gradient of bias, 1 where it is broadcast
    "bias_heads",
    "bias_rows",
)
SCALARS = (
    "multiplier",  # of a product q.k: see Score in score.h
    "softcap_log2",
    "scale",
    "dropout_kept_weight",
)


def structs(backward: bool) -> str:
    """The two structs as MSL."""
    names = INTEGERS + BACKWARD_INTEGERS if backward else INTEGERS
    scalars = "".join(f"  float {name};\n" for name in SCALARS)
    return f"{integer_struct(names)}\nstruct AttentionScalars {{\n{scalars}}};\n"


def integer_struct(names: tuple[str, ...]) -> str:
    """The struct of the int64 parameters, in the order in which they are packed."""
    integers = "".join(f"  long {name};\n" for name in names)
    return f"struct AttentionParams {{\n{integers}}};\n"


class Geometry(NamedTuple):
    """What a launch must know of its tensors: strides in elements and the packed length."""

    q: tuple[int, ...]
    k: tuple[int, ...]
    v: tuple[int, ...]
    bias: tuple[int, ...] | None
    rows_q: int  # of a packed batch; Sq of a dense one
    grad_o: tuple[int, ...] | None = None
    k_scale: tuple[int, ...] | None = None
    v_scale: tuple[int, ...] | None = None
    pages: int = 0  # columns of the block table
    rows_k: int = 0  # of a packed batch; Sk of a dense one, and nothing of pages


def pack_integers(
    problem: AttentionProblem, geometry: Geometry, splits: int = 1
) -> tuple[int, ...]:
    """The values of :data:`INTEGERS` for one call, in order."""
    dense = problem.layout == "dense"
    bias = (0, 0, 0, 0)
    if problem.bias is not None and geometry.bias is not None:
        strides = geometry.bias
        bias = (
            *(0 if b else s for s, b in zip(strides[:3], problem.bias, strict=True)),
            strides[3],
        )
    return (
        problem.seqlen_q,
        problem.seqlen_k,
        problem.heads_q,
        problem.heads_q // problem.heads_k,
        problem.window_left,
        problem.window_right,
        *(stride for tensor in geometry[:3] for stride in _batch_row_head(tensor)),
        problem.seqlen_q * problem.heads_q * problem.head_dim_v if dense else 0,
        problem.seqlen_q * problem.heads_q if dense else 0,
        geometry.rows_q,
        *bias,
        problem.heads_q if problem.alibi == "batch_head" else 0,
        round(problem.dropout_p * 65536),
        geometry.pages,
        *(
            stride
            for scale in (geometry.k_scale or (0, 0, 0), geometry.v_scale or (0, 0, 0))
            for stride in ((0, *scale[:2]) if len(geometry.k) == 3 else scale[:3])
        ),
        *(0, 0, 0),
        splits,
        (problem.batch if dense else 1) * geometry.rows_q * problem.heads_q,
    )


def pack_backward_integers(problem: AttentionProblem, geometry: Geometry) -> tuple[int, ...]:
    """The values of :data:`INTEGERS` and :data:`BACKWARD_INTEGERS` for one call, in order."""
    dense = problem.layout == "dense"
    rows_k = problem.seqlen_k * problem.heads_k
    broadcast = problem.bias or (True, True, True)
    sizes = problem.batch, problem.heads_q, problem.seqlen_q
    return (
        *pack_integers(problem, geometry),
        problem.batch,
        *_batch_row_head(geometry.grad_o or (0, 0, 0)),
        problem.seqlen_q * problem.heads_q * problem.head_dim if dense else 0,
        rows_k * problem.head_dim if dense else 0,
        rows_k * problem.head_dim_v if dense else 0,
        *(1 if shared else size for size, shared in zip(sizes, broadcast, strict=True)),
    )


def pack_scalars(problem: AttentionProblem) -> tuple[float, ...]:
    """The values of :data:`SCALARS` for one call, in order."""
    multiplier, softcap_log2 = problem.scale * LOG2E, 0.0
    if problem.softcap > 0.0:
        multiplier, softcap_log2 = problem.scale / problem.softcap, problem.softcap * LOG2E
    return multiplier, softcap_log2, problem.scale, 1.0 / (1.0 - problem.dropout_p)


def _batch_row_head(strides: tuple[int, ...]) -> tuple[int, ...]:
    """(batch, row, head) strides of (B, S, H, D) or, with batch stride 0, of (total, H, D)."""
    return strides[:3] if len(strides) == 4 else (0, *strides[:2])
