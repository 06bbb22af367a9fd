"""Padded batches to packed ones and back: flash_attn's ``bert_padding`` in plain torch operations.

All functions are differentiable.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "index_first_axis",
    "index_first_axis_residual",
    "index_put_first_axis",
    "pad_input",
    "unpad_input",
    "unpad_input_for_concatenated_sequences",
]


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """Keep the rows of a padded batch that a mask marks, one sequence after the other.

    Args:
        hidden_states: (B, S, ...).
        attention_mask: (B, S), bool or integer, nonzero where a row is real.
        unused_mask: (B, S), rows to keep besides, that no one uses yet.

    Returns:
        rows (total, ...), their indices (total,) int64 in the flattened batch, cu_seqlens (B + 1,)
        int32, the longest length as an int (which waits for the device), and the real rows of each
        sequence (B,) int32.
    """
    for name, mask in (("attention_mask", attention_mask), ("unused_mask", unused_mask)):
        if mask is not None and mask.shape != hidden_states.shape[:2]:
            raise ValueError(
                f"unpad_input: {name} must be (B, S) = {tuple(hidden_states.shape[:2])} as "
                f"hidden_states is, got {tuple(mask.shape)}"
            )
    real = attention_mask != 0
    kept = real if unused_mask is None else real | (unused_mask != 0)
    lengths = kept.sum(-1, dtype=torch.int32)
    indices = kept.flatten().nonzero().flatten()
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if lengths.numel() else 0
    rows = index_first_axis(hidden_states.flatten(0, 1), indices)
    return rows, indices, cu_seqlens, longest, real.sum(-1, dtype=torch.int32)


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Keep the real rows of a padded batch whose rows of tokens hold several sequences each.

    Args:
        hidden_states: (B, S, ...).
        attention_mask_in_length: (B, S) integer, the lengths of the sequences of each row, first to
            last, then zeros: [2, 3, 0, 0, 0, 0] is a sequence of 2, one of 3 and 1 row of padding.

    Returns:
        rows (total, ...), their indices (total,) int64 in the flattened batch, cu_seqlens
        (sequences + 1,) int32 and the longest length as an int (which waits for the device).
    """
    if attention_mask_in_length.shape != hidden_states.shape[:2]:
        raise ValueError(
            "unpad_input_for_concatenated_sequences: attention_mask_in_length must be (B, S) = "
            f"{tuple(hidden_states.shape[:2])} as hidden_states is, got "
            f"{tuple(attention_mask_in_length.shape)}"
        )
    columns = torch.arange(hidden_states.shape[1], device=hidden_states.device)
    real = columns < attention_mask_in_length.sum(-1, keepdim=True)
    rows, indices, *_ = unpad_input(hidden_states, real)
    lengths = attention_mask_in_length[attention_mask_in_length != 0].to(torch.int32)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return rows, indices, cu_seqlens, int(lengths.max()) if lengths.numel() else 0


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """(total, ...) back to (batch, seqlen, ...), with zeros in the rows that are not kept."""
    padded = index_put_first_axis(hidden_states, indices, batch * seqlen)
    return padded.view(batch, seqlen, *padded.shape[1:])


def index_first_axis(values: Tensor, indices: Tensor) -> Tensor:
    """The rows ``values[indices]`` of (rows, ...)."""
    return values.index_select(0, indices)


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """(first_axis_dim, ...) of zeros, with ``values`` at the rows ``indices``."""
    zeros = values.new_zeros((first_axis_dim, *values.shape[1:]))
    return zeros.index_copy(0, indices, values)


def index_first_axis_residual(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The rows ``values[indices]``, and values for the sum that a residual connection makes."""
    return index_first_axis(values, indices), values
