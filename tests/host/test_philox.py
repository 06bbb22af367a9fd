"""The random numbers of dropout: Philox4x32-10 as published, and its place in the scores."""

from __future__ import annotations

import pytest
import torch

from flashmetal.philox import kept, philox, threshold

# kat_vectors of Random123 1.14: counter, key, result.
PUBLISHED = {
    "zeros": ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}


def _plain(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, which have no width."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, p0 >> 32 ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_vectors(name: str) -> None:
    counter, key, expected = ([int(w, 16) for w in words.split()] for words in PUBLISHED[name])
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    k0, k1 = (torch.tensor(word) for word in key)
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == expected
    assert _plain(counter, key) == expected


@pytest.mark.parametrize("state", [(0, 0), (-5, 7), (2**62 + 12345, 2**40 + 3)], ids=str)
def test_each_entry_has_its_own_bits(state: tuple[int, int]) -> None:
    """Entry by entry from the words of the module's docstring."""
    seed, offset = state
    heads, dropout_p = torch.tensor([[3], [11]]), 0.37
    mask = kept(torch.tensor(state), dropout_p, heads, (5, 9), (27, 103))
    assert mask.shape == (2, 1, 4, 76)
    key = [seed & 0xFFFFFFFF, ((seed >> 32) ^ (offset >> 32)) & 0xFFFFFFFF]
    for h, head in enumerate((3, 11)):
        for i in range(5, 9):
            for j in range(27, 103):
                draw = [j // 32 * 4 + j % 8 // 2, i, head, offset & 0xFFFFFFFF]
                half = j % 32 // 8 * 2 + j % 2
                value = _plain(draw, key)[half // 2] >> 16 * (half % 2) & 0xFFFF
                assert bool(mask[h, 0, i - 5, j - 27]) == (value >= round(0.37 * 65536))


def test_a_part_equals_the_whole() -> None:
    state, heads = torch.tensor([7, 9]), torch.arange(3)
    whole = kept(state, 0.5, heads, (0, 50), (0, 130))
    assert torch.equal(kept(state, 0.5, heads[1:], (13, 50), (31, 65)), whole[1:, 13:, 31:65])
    assert kept(state, 0.5, heads, (4, 4), (0, 0)).shape == (3, 0, 0)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1, 0.5, 0.9])
def test_the_share_kept(dropout_p: float) -> None:
    mask = kept(torch.tensor([1, 2]), dropout_p, torch.arange(4), (0, 256), (0, 256))
    share, deviation = float(mask.double().mean()), (dropout_p * (1 - dropout_p)) ** 0.5
    assert abs(share - (1 - dropout_p)) <= 4 * deviation / mask.numel() ** 0.5
    assert threshold(dropout_p) / 65536 == pytest.approx(dropout_p, abs=1e-5)


def test_heads_rows_and_seeds_differ() -> None:
    base = kept(torch.tensor([1, 2]), 0.5, torch.arange(2), (0, 32), (0, 64))
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base[:, 0], base[:, 1])
    assert not torch.equal(base[..., :32], base[..., 32:])
    for state in ((2, 2), (1, 3), (1 + 2**32, 2), (1, 2 + 2**32)):
        other = kept(torch.tensor(state), 0.5, torch.arange(2), (0, 32), (0, 64))
        assert not torch.equal(base, other)
