"""Masks of other libraries as flashmetal has them."""

from __future__ import annotations

import pytest
import torch

from flashmetal.integrations.masks import bias_of_mask, top_left_causal


def test_a_boolean_mask_hides_and_others_keep_their_precision() -> None:
    seen = torch.tensor([[True, False, True]])
    bias = bias_of_mask(seen, torch.float16, 3)
    assert bias.dtype == torch.float16
    assert bias.tolist() == [[[[0.0, -torch.inf, 0.0]]]]
    fine = torch.tensor([[[1.0 + 2**-20]]])
    found = bias_of_mask(fine, torch.float16, 5)
    assert found.shape == (1, 1, 1, 5)
    assert torch.all(found == fine)
    assert bias_of_mask(fine.double(), torch.float16, 5).dtype == torch.float16


@pytest.mark.parametrize(("rows", "keys"), [(4, 4), (2, 5), (5, 2), (1, 3), (3, 1)])
def test_top_left_causal(rows: int, keys: int) -> None:
    used, (left, right) = top_left_causal(rows, keys)
    i, j = torch.arange(rows)[:, None], torch.arange(used)
    assert left == -1
    assert torch.equal(j <= i + used - rows + right, j <= i)
    assert not (torch.arange(used, keys) <= i).any()
