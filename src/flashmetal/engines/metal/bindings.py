"""The buffers of each kernel, declared once: signature, operand struct and arguments agree.

``compile_shader`` binds positional arguments to buffer indices and takes no None, so a buffer that
a variant does not use is absent from its signature, and its operand is a null pointer.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class NamedKernel(Protocol):
    """A kernel's name beside its flags, which have the names that :data:`TABLES` asks for."""

    @property
    def kernel(self) -> str: ...


class Binding(NamedTuple):
    """One buffer: its name, its MSL type, and the variant flag it needs (None: always there)."""

    name: str
    msl_type: str
    flag: str | None


_INPUTS = (
    Binding("q", "const device Element*", None),
    Binding("k", "const device KeyCode*", None),
    Binding("v", "const device ValueCode*", None),
)
_FEATURES = (
    Binding("cu_seqlens_q", "const device int*", "is_varlen"),
    Binding("cu_seqlens_k", "const device int*", "has_cu_seqlens_k"),
    Binding("seqused_k", "const device int*", "has_seqused_k"),
    Binding("block_table", "const device int*", "has_pages"),
    Binding("leftpad_k", "const device int*", "has_leftpad_k"),
    Binding("k_scale", "const device float*", "has_k_scale"),
    Binding("v_scale", "const device float*", "has_v_scale"),
    Binding("bias", "const device BiasElement*", "has_bias"),
    Binding("alibi_slopes", "const device float*", "has_alibi"),
    Binding("rng_state", "const device long*", "has_dropout"),
)
_FORWARD = (
    *_INPUTS,
    Binding("o", "device Element*", None),
    Binding("lse", "device float*", None),
    *_FEATURES,
    Binding("sinks", "const device float*", "has_sinks"),
)
_DELTA = (
    Binding("o", "const device Element*", None),
    Binding("grad_o", "const device Element*", None),
    Binding("grad_lse", "const device float*", "has_grad_lse"),
    Binding("delta", "device float*", None),
)
_BACKWARD = (
    *_INPUTS,
    Binding("grad_o", "const device Element*", None),
    Binding("lse", "const device float*", None),
    Binding("delta", "const device float*", None),
    *_FEATURES,
)
TABLES = {
    "attention_forward": _FORWARD,
    "attention_forward_scalar": _FORWARD,
    "attention_decode": (
        *_FORWARD,
        Binding("partial_o", "device float*", "is_split"),
        Binding("partial_lse", "device float*", "is_split"),
    ),
    "attention_combine": (
        Binding("o", "device Element*", None),
        Binding("lse", "device float*", None),
        Binding("partial_o", "const device float*", None),
        Binding("partial_lse", "const device float*", None),
    ),
    "attention_backward_delta": _DELTA,
    "attention_backward_q": (
        *_BACKWARD,
        Binding("grad_q", "device Element*", None),
        Binding("distances", "device float*", "has_slope_gradient"),
    ),
    "attention_backward_kv": (
        *_BACKWARD,
        Binding("grad_k", "device Element*", None),
        Binding("grad_v", "device Element*", None),
    ),
    "attention_backward_bias": (*_BACKWARD, Binding("grad_bias", "device BiasElement*", None)),
    "cache_append": (
        Binding("q", "const device Element*", "has_q"),
        Binding("k_new", "const device Element*", None),
        Binding("v_new", "const device Element*", None),
        Binding("k_cache", "device KeyCode*", None),
        Binding("v_cache", "device ValueCode*", None),
        Binding("cache_seqlens", "const device int*", None),
        Binding("block_table", "const device int*", "has_pages"),
        Binding("cos", "const device Element*", "has_rotary"),
        Binding("sin", "const device Element*", "has_rotary"),
        Binding("k_scale", "device float*", "has_k_scale"),
        Binding("v_scale", "device float*", "has_v_scale"),
        Binding("rotary_seqlens", "const device int*", "has_rotary_seqlens"),
        Binding("cu_seqlens_q", "const device int*", "is_packed_q"),
        Binding("cu_seqlens_new", "const device int*", "is_packed_new"),
        Binding("q_out", "device Element*", "has_q"),
    ),
}


def bound(variant: NamedKernel) -> tuple[str, ...]:
    """Names of the buffers this variant binds, in index order."""
    table = TABLES[variant.kernel]
    return tuple(b.name for b in table if b.flag is None or getattr(variant, b.flag))


def declarations(variant: NamedKernel, scalars: bool = True) -> str:
    """MSL: struct Operands and the macros ATTENTION_BINDINGS and ATTENTION_OPERANDS."""
    table, present = TABLES[variant.kernel], bound(variant)
    members = "".join(f"  {b.msl_type} {b.name};\n" for b in table)
    types = {b.name: b.msl_type for b in table}
    signature = [
        f"{types[name]} {name}_buffer [[buffer({index})]]" for index, name in enumerate(present)
    ]
    signature.append(f"constant AttentionParams& params [[buffer({len(present)})]]")
    if scalars:
        signature.append(f"constant AttentionScalars& scalars [[buffer({len(present) + 1})]]")
    operands = ", ".join(f"{b.name}_buffer" if b.name in present else "nullptr" for b in table)
    return (
        f"struct Operands {{\n{members}}};\n\n"
        f"#define ATTENTION_BINDINGS {', '.join(signature)}\n"
        f"#define ATTENTION_OPERANDS {{{operands}}}\n"
    )
