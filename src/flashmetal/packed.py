"""Where the rows of packed sequences belong."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_and_row(starts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For each of ``total`` packed rows its sequence and its index there, (total,) int each.

    ``starts`` are offsets (B + 1,) int32 or int64, from 0 to total; sequences may be empty.
    """
    rows = torch.arange(total, device=starts.device, dtype=starts.dtype)
    sequence = torch.searchsorted(starts[1:], rows, right=True)
    return sequence, rows - starts[sequence]
