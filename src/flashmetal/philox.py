"""Which probabilities dropout keeps: the definition, in torch's integer operations.

Philox4x32-10 is the counter-based generator of Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011). A draw depends on the seed, the offset and where it is used, never on the order
of work: forward, backward, every engine and every tile size drop the same entries.

Entry (i, j) of one head, positions within its sequence, takes 16 bits of the draw with::

    key      seed & 0xffffffff, (seed >> 32) ^ (offset >> 32)
    counter  (j // 32) * 4 + (j % 8) // 2, i, batch * Hq + head, offset & 0xffffffff

The eight halves of its four words, the low half of the first word first, serve the keys of a group
of 32 that have one (j % 8) // 2: half (j % 32) // 8 * 2 + j % 2. So a lane of an 8x8 fragment draws
once for the eight entries it holds of 32 keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_GROUP = 32  # keys that four draws of eight halves serve

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """The four words of each draw. All are int64 tensors that hold 32 bits, and broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products wrap at 64 bits, which leaves both their words as they should be.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        high0, high1 = p0 >> 32 & _WORD, p1 >> 32 & _WORD
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, p1 & _WORD, high0 ^ c3 ^ k1, p0 & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def threshold(dropout_p: float) -> int:
    """Entries whose 16 bits are below it are dropped: 65,536 times the probability, rounded."""
    return round(dropout_p * 65536)


def kept(
    rng_state: Tensor,
    dropout_p: float,
    heads: Tensor,
    rows: tuple[int, int],
    keys: tuple[int, int],
) -> Tensor:
    """Which entries dropout keeps: bool (*heads.shape, row_end - row, key_end - key).

    Args:
        rng_state: (2,) int64, seed and offset.
        heads: int64, batch * Hq + head of each head.
        rows: (row, row_end), the positions i wanted.
        keys: (key, key_end), the positions j wanted.
    """
    seed, offset = rng_state[0], rng_state[1]
    group, group_end = keys[0] // _GROUP, (keys[1] + _GROUP - 1) // _GROUP
    draws = torch.arange(4 * group, 4 * group_end, device=heads.device)
    positions = torch.arange(*rows, device=heads.device)[:, None]
    words = philox(
        (draws, positions, heads[..., None, None], offset & _WORD),
        (seed & _WORD, (seed >> 32 ^ offset >> 32) & _WORD),
    )
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], -1)
    # (..., group, draw, octet, half) in the order of the keys: group, octet, draw, half.
    halves = halves.view(*halves.shape[:-2], group_end - group, 4, 4, 2)
    values = halves.transpose(-3, -2).flatten(-4)
    start = keys[0] - group * _GROUP
    return values[..., start : start + keys[1] - keys[0]] >= threshold(dropout_p)
