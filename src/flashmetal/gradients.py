"""What a backward pass returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """Gradients by the tensors of a call, each in its shape; None where it was not asked for.

    Those of q, k, v and bias have the tensors' dtypes, those of sinks and slopes are float32.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None
