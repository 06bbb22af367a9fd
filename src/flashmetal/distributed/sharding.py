"""Which rows of a sequence lie on which rank, and which of them meet under which mask.

"zigzag" cuts a sequence into twice as many chunks as there are ranks and gives rank r the chunks r
and 2 * ranks - 1 - r, so that every rank sees as many keys of a causal mask as the others (Llama
3's and zhuzilin/ring-flash-attention's layout). "contiguous" gives rank r the chunk r of as many
chunks as ranks, which suits windows: only neighbours meet. Chunks differ by one row at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..pieces import Piece, Span, cut, visible
from .groups import Group, members

SHARDINGS = ("zigzag", "contiguous")
MOST_ROWS = 8192  # queries in one call of an engine: what it holds while it works is theirs
Rows = Span | Tensor  # neighbouring rows, or the index (n,) of scattered ones


class Sharding(NamedTuple):
    """How the sequences of a call are spread; hashable. A dense batch is one sequence."""

    seqlens_q: tuple[int, ...]
    seqlens_k: tuple[int, ...]
    ranks: int
    kind: str

    def spans(self, seqlen: int, rank: int) -> list[Span]:
        """The rows of one sequence that a rank holds, in the order in which it holds them."""
        chunks = 2 * self.ranks if self.kind == "zigzag" else self.ranks
        bounds = [chunk * seqlen // chunks for chunk in range(chunks + 1)]
        own = [rank, chunks - 1 - rank] if self.kind == "zigzag" else [rank]
        if len(own) == 2 and own[0] + 1 == own[1]:
            return [(bounds[own[0]], bounds[own[1] + 1])]
        return [(bounds[chunk], bounds[chunk + 1]) for chunk in own]

    def lengths(self, seqlens: tuple[int, ...], rank: int) -> list[int]:
        """How many rows of each sequence a rank holds."""
        return [sum(end - start for start, end in self.spans(n, rank)) for n in seqlens]

    def rows(self, seqlens: tuple[int, ...], rank: int) -> list[Span]:
        """A rank's rows among those of all sequences, packed one after the other."""
        starts = accumulate(seqlens, initial=0)
        return [
            (start + first, start + end)
            for seqlen, start in zip(seqlens, starts, strict=False)
            for first, end in self.spans(seqlen, rank)
        ]


class Meeting(NamedTuple):
    """One call of an engine. ``lengths`` of a packed one: both cu_seqlens, then the longest."""

    q: Rows
    k: Rows
    window: tuple[int, int]
    lengths: tuple[Tensor, Tensor, int, int] | None


def local_rows(
    seqlen: int | Tensor,
    group: Group = None,
    *,
    sharding: str = "zigzag",
    rank: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The rows that this rank holds: an index (n,) int64 into a sequence or a packed batch.

    ``x[:, rows]`` is this rank's shard of a dense x (B, S, ...), ``x[rows]`` of a packed one, and
    the rows of a dense sequence are the positions that a rotary embedding needs.

    Args:
        seqlen: S, or the cu_seqlens (B + 1,) of the whole packed batch.
        group: a process group, a one-dimensional DeviceMesh, or None for the default group.
        sharding: "zigzag" (balanced for causal masks) or "contiguous".
        rank: of the group; this process's own by default.
        device: of the index.
    """
    ranks, own = members("local_rows", group)
    check_sharding("local_rows", sharding)
    rank = own if rank is None else rank
    if not 0 <= rank < ranks:
        raise ValueError(f"local_rows: rank must be from 0 to {ranks - 1}, got {rank}")
    seqlens = lengths_of(seqlen) if isinstance(seqlen, Tensor) else (seqlen,)
    whole = Sharding(seqlens, seqlens, ranks, sharding)
    return index_of(whole.rows(seqlens, rank), torch.device(device))


def lengths_of(cu_seqlens: Tensor) -> tuple[int, ...]:
    """The lengths of packed sequences; offsets that lie on a device are read back."""
    offsets = cast("list[int]", cu_seqlens.tolist())
    return tuple(end - start for start, end in pairwise(offsets))


def check_sharding(function: str, sharding: str) -> None:
    if sharding not in SHARDINGS:
        raise ValueError(f"{function}: sharding must be one of {SHARDINGS}, got {sharding!r}")


def steps(sharding: Sharding, window: tuple[int, int]) -> int:
    """How many shards have to visit any rank, counted along the ring; at least 1."""
    for step in range(sharding.ranks - 1, 0, -1):
        for rank in range(sharding.ranks):
            source = (rank - step) % sharding.ranks
            for sequence in range(len(sharding.seqlens_q)):
                if next(_pieces(sharding, window, (rank, source), sequence), None) is not None:
                    return step + 1
    return 1


def meetings(
    sharding: Sharding,
    window: tuple[int, int],
    pair: tuple[int, int],
    packed: bool,
    device: torch.device,
) -> list[Meeting]:
    """The calls for the queries of rank pair[0] and the keys of rank pair[1]."""
    if not packed:
        pieces = cut(_joined(list(_pieces(sharding, window, pair, 0))), MOST_ROWS)
        return [Meeting(x.q, x.k, (x.left, x.right), None) for x in pieces]
    # Sequences share a call where they share a window, each with one piece.
    calls: dict[tuple[int, int, int], list[Piece]] = {}
    starts_q = _starts(sharding.lengths(sharding.seqlens_q, pair[0]))
    starts_k = _starts(sharding.lengths(sharding.seqlens_k, pair[1]))
    for sequence, (start_q, start_k) in enumerate(zip(starts_q[:-1], starts_k[:-1], strict=True)):
        alike: dict[Span, int] = {}
        for piece in cut(_joined(list(_pieces(sharding, window, pair, sequence))), MOST_ROWS):
            mask = piece.left, piece.right
            alike[mask] = alike.get(mask, -1) + 1
            placed = piece._replace(q=_moved(piece.q, start_q), k=_moved(piece.k, start_k))
            calls.setdefault((*mask, alike[mask]), []).append(placed)
    return [_packed_meeting(run, device) for pieces in calls.values() for run in _runs(pieces)]


def _pieces(
    sharding: Sharding, window: tuple[int, int], pair: tuple[int, int], sequence: int
) -> Iterator[Piece]:
    """The pieces of one sequence, rows counted within the two shards of it."""
    seqlen_q, seqlen_k = sharding.seqlens_q[sequence], sharding.seqlens_k[sequence]
    start_q = 0
    for q in sharding.spans(seqlen_q, pair[0]):
        start_k = 0
        for k in sharding.spans(seqlen_k, pair[1]):
            piece = visible(q, k, seqlen_k - seqlen_q, window)
            if piece is not None:
                rows = _moved(piece.q, start_q - q[0]), _moved(piece.k, start_k - k[0])
                yield piece._replace(q=rows[0], k=rows[1])
            start_k += k[1] - k[0]
        start_q += q[1] - q[0]


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces without a mask as one where their keys are the same, or their queries."""
    found: list[Piece] = []
    for piece in pieces:
        for index, other in enumerate(found):
            if max(piece.left, piece.right, other.left, other.right) >= 0:
                continue
            if piece.k == other.k and other.q[1] == piece.q[0]:
                found[index] = other._replace(q=(other.q[0], piece.q[1]))
                break
            if piece.q == other.q and other.k[1] == piece.k[0]:
                found[index] = other._replace(k=(other.k[0], piece.k[1]))
                break
        else:
            found.append(piece)
    return found if len(found) == len(pieces) else _joined(found)


def _runs(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Neighbouring pieces that have MOST_ROWS queries or fewer together."""
    run: list[Piece] = []
    rows = 0
    for piece in pieces:
        rows += piece.q[1] - piece.q[0]
        if run and rows > MOST_ROWS:
            yield run
            run, rows = [], piece.q[1] - piece.q[0]
        run.append(piece)
    yield run


def _packed_meeting(pieces: list[Piece], device: torch.device) -> Meeting:
    sides = [piece.q for piece in pieces], [piece.k for piece in pieces]
    lengths = [[end - start for start, end in spans] for spans in sides]
    starts = [torch.tensor(_starts(x), dtype=torch.int32, device=device) for x in lengths]
    rows = [_rows(spans, device) for spans in sides]
    window = pieces[0].left, pieces[0].right
    return Meeting(
        rows[0], rows[1], window, (starts[0], starts[1], max(lengths[0]), max(lengths[1]))
    )


def _rows(spans: list[Span], device: torch.device) -> Rows:
    if all(first[1] == second[0] for first, second in pairwise(spans)):
        return spans[0][0], spans[-1][1]
    return index_of(spans, device)


def index_of(spans: list[Span], device: torch.device) -> Tensor:
    """The rows of all spans, in order."""
    parts = [torch.arange(start, end) for start, end in spans]
    return torch.cat(parts or [torch.empty(0, dtype=torch.int64)]).to(device)


def _starts(lengths: list[int]) -> list[int]:
    return list(accumulate(lengths, initial=0))


def _moved(span: Span, offset: int) -> Span:
    return span[0] + offset, span[1] + offset


def index_of_rank(
    sharding: Sharding, seqlens: tuple[int, ...], rank: int, device: torch.device
) -> Tensor:
    """A rank's rows among those of all sequences, as an index."""
    return index_of(sharding.rows(seqlens, rank), device)


cached_steps = lru_cache(maxsize=256)(steps)
# These hold index tensors: as many as the layers of a step or two ask for.
cached_meetings = lru_cache(maxsize=64)(meetings)
cached_index = lru_cache(maxsize=64)(index_of_rank)
