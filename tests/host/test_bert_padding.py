"""bert_padding: round trips, and the five values of flash_attn 2.8."""

from __future__ import annotations

import pytest
import torch

import flashmetal
from flashmetal.bert_padding import (
    index_first_axis,
    index_first_axis_residual,
    index_put_first_axis,
    pad_input,
    unpad_input,
    unpad_input_for_concatenated_sequences,
)

MASK = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("mask", [MASK, MASK.bool(), MASK.int()], ids=["int64", "bool", "int32"])
@pytest.mark.parametrize("rest", [(), (6,), (3, 6)], ids=str)
def test_round_trip(rest: tuple[int, ...], mask: torch.Tensor) -> None:
    padded = torch.randn(4, 5, *rest)
    rows, indices, cu_seqlens, longest, used = unpad_input(padded, mask)
    assert torch.equal(rows, padded[mask.bool()])
    assert indices.tolist() == [0, 1, 11, 12, 14, 15, 16, 17, 18, 19]
    assert cu_seqlens.tolist() == [0, 2, 2, 5, 10]
    assert used.tolist() == [2, 0, 3, 5]
    assert cu_seqlens.dtype == used.dtype == torch.int32
    assert longest == 5
    assert type(longest) is int
    again = pad_input(rows, indices, 4, 5)
    assert torch.equal(again[mask.bool()], rows)
    assert torch.all(again[~mask.bool()] == 0)
    assert again.shape == padded.shape


def test_unused_rows_are_kept_but_not_counted_as_used() -> None:
    unused = torch.zeros_like(MASK)
    unused[0, 2] = unused[1, 4] = 1
    rows, indices, cu_seqlens, longest, used = unpad_input(torch.randn(4, 5, 2), MASK, unused)
    assert indices.tolist() == [0, 1, 2, 9, 11, 12, 14, 15, 16, 17, 18, 19]
    assert cu_seqlens.tolist() == [0, 3, 4, 7, 12]
    assert used.tolist() == [2, 0, 3, 5]
    assert len(rows) == 12
    assert longest == 5


def test_an_empty_batch() -> None:
    rows, indices, cu_seqlens, longest, used = unpad_input(torch.randn(0, 5, 2), MASK[:0])
    assert rows.shape == (0, 2)
    assert cu_seqlens.tolist() == [0]
    assert (len(indices), longest, len(used)) == (0, 0, 0)
    assert pad_input(rows, indices, 0, 5).shape == (0, 5, 2)


def test_gradients() -> None:
    padded = torch.randn(4, 5, 2, dtype=torch.float64, requires_grad=True)

    def round_trip(x: torch.Tensor) -> torch.Tensor:
        rows, indices, *_ = unpad_input(x, MASK)
        return pad_input(rows.square(), indices, 4, 5)

    assert torch.autograd.gradcheck(round_trip, padded)
    assert torch.autograd.gradgradcheck(round_trip, padded)


def test_index_functions_are_inverse() -> None:
    values, indices = torch.randn(7, 3), torch.tensor([5, 0, 2])
    rows = index_first_axis(values, indices)
    assert torch.equal(rows, values[indices])
    put = index_put_first_axis(rows, indices, 7)
    assert torch.equal(put[indices], rows)
    assert torch.all(put[[1, 3, 4, 6]] == 0)


def test_rows_of_several_sequences() -> None:
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    padded = torch.randn(3, 6, 2)
    rows, indices, cu_seqlens, longest = unpad_input_for_concatenated_sequences(padded, lengths)
    assert indices.tolist() == [*range(5), *range(6, 11), *range(12, 18)]
    assert torch.equal(rows, padded.flatten(0, 1)[indices])
    assert cu_seqlens.tolist() == [0, 2, 5, 8, 10, 16]
    assert cu_seqlens.dtype == torch.int32
    assert longest == 6
    empty = unpad_input_for_concatenated_sequences(padded, lengths * 0)
    assert (len(empty[0]), empty[2].tolist(), empty[3]) == (0, [0], 0)
    with pytest.raises(ValueError, match="attention_mask_in_length must be"):
        unpad_input_for_concatenated_sequences(padded, lengths[:2])


def test_a_residual_has_gradients_of_both_uses() -> None:
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def layer(values: torch.Tensor) -> torch.Tensor:
        rows, residual = index_first_axis_residual(values, torch.tensor([3, 0]))
        return torch.cat((rows.square(), residual))

    assert torch.autograd.gradcheck(layer, values)


@pytest.mark.parametrize("mask", [MASK[:3], MASK[:, :4], MASK[0]])
def test_wrong_masks(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="unpad_input: attention_mask must be"):
        unpad_input(torch.randn(4, 5, 2), mask)
    with pytest.raises(ValueError, match="unpad_input: unused_mask must be"):
        unpad_input(torch.randn(4, 5, 2), MASK, mask)


def test_a_padded_batch_through_varlen_equals_each_sequence_alone() -> None:
    q = torch.randn(4, 5, 2, 8)
    rows, indices, cu_seqlens, longest, _ = unpad_input(q, MASK)
    lengths = cu_seqlens, cu_seqlens, longest, longest
    out = flashmetal.flash_attn_varlen_func(rows, rows, rows, *lengths, causal=True)
    padded = pad_input(out, indices, 4, 5)
    for b in (0, 2, 3):
        alone = q[b, MASK[b].bool()][None]
        expected = flashmetal.flash_attn_func(alone, alone, alone, causal=True)[0]
        torch.testing.assert_close(padded[b, MASK[b].bool()], expected)
