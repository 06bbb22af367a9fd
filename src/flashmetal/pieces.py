"""Parts of a mask that are calls of their own: rows, the keys they see, and the window left."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Span = tuple[int, int]  # rows [first, end)


class Piece(NamedTuple):
    """Rows of queries, rows of keys, and the window that is left of the mask.

    The window is aligned bottom-right within the piece, as the public functions take it.
    """

    q: Span
    k: Span
    left: int
    right: int


def visible(q: Span, k: Span, diagonal: int, window: tuple[int, int]) -> Piece | None:
    """The part of two spans in which a row sees a key, or None.

    Row i stands at key i + diagonal. What is cut off sees nothing and is seen by nothing, which
    leaves bounds from 0 on; -1 is unbounded.
    """
    left, right = window
    (row, row_end), (key, key_end) = q, k
    if right >= 0:
        row = max(row, key - diagonal - right)
    if left >= 0:
        row_end = min(row_end, key_end - diagonal + left)
        key = max(key, row + diagonal - left)
    if right >= 0:
        key_end = min(key_end, row_end + diagonal + right)
    if row >= row_end or key >= key_end:
        return None
    # Within the piece the last row stands at the last key.
    shift = row_end + diagonal - key_end
    left = -1 if left < 0 else left - shift
    right = -1 if right < 0 else right + shift
    left = left if left < key_end - key - 1 else -1
    right = right if right < row_end - row - 1 else -1
    return Piece((row, row_end), (key, key_end), left, right)


def cut(pieces: Iterable[Piece], most: int) -> list[Piece]:
    """The same pairs in pieces of ``most`` queries or fewer."""
    found: list[Piece] = []
    for piece in pieces:
        window, diagonal = (piece.left, piece.right), piece.k[1] - piece.q[1]
        for row in range(*piece.q, most):
            rows = row, min(row + most, piece.q[1])
            part = visible(rows, piece.k, diagonal, window)
            found += [] if part is None else [part]
    return found
