"""What the backward of an engine gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """The gradients of a call's differentiable inputs, by their names in ``AttentionInputs``.

    None where not wanted. All are contiguous; those of q, k, v and bias have their input's shape
    and dtype (a broadcast bias's is summed over what it is broadcast to), the others are float32.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
