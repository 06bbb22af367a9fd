"""The buffers of a forward launch, declared once: signature, operand struct and arguments agree.

``compile_shader`` binds positional arguments to buffer indices and takes no None, so a buffer that
a variant does not use is absent from its signature, and its operand is a null pointer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .variant import KernelVariant


class Binding(NamedTuple):
    """One buffer: its name, its MSL type, and the variant flag it needs (None: always there)."""

    name: str
    msl_type: str
    flag: str | None


FORWARD = (
    Binding("q", "const device Element*", None),
    Binding("k", "const device Element*", None),
    Binding("v", "const device Element*", None),
    Binding("o", "device Element*", None),
    Binding("lse", "device float*", None),
    Binding("cu_seqlens_q", "const device int*", "is_varlen"),
    Binding("cu_seqlens_k", "const device int*", "is_varlen"),
    Binding("seqused_k", "const device int*", "has_seqused_k"),
    Binding("bias", "const device BiasElement*", "has_bias"),
    Binding("alibi_slopes", "const device float*", "has_alibi"),
    Binding("sinks", "const device float*", "has_sinks"),
)


def bound(variant: KernelVariant) -> tuple[str, ...]:
    """Names of the buffers this variant binds, in index order."""
    return tuple(b.name for b in FORWARD if b.flag is None or getattr(variant, b.flag))


def declarations(variant: KernelVariant) -> str:
    """MSL: struct Operands and the macros ATTENTION_BINDINGS and ATTENTION_OPERANDS."""
    present = bound(variant)
    members = "".join(f"  {b.msl_type} {b.name};\n" for b in FORWARD)
    types = {b.name: b.msl_type for b in FORWARD}
    signature = [
        f"{types[name]} {name}_buffer [[buffer({index})]]" for index, name in enumerate(present)
    ]
    signature += [
        f"constant AttentionParams& params [[buffer({len(present)})]]",
        f"constant AttentionScalars& scalars [[buffer({len(present) + 1})]]",
    ]
    operands = ", ".join(f"{b.name}_buffer" if b.name in present else "nullptr" for b in FORWARD)
    return (
        f"struct Operands {{\n{members}}};\n\n"
        f"#define ATTENTION_BINDINGS {', '.join(signature)}\n"
        f"#define ATTENTION_OPERANDS {{{operands}}}\n"
    )
