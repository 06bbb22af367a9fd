"""What a launch of a forward kernel consists of, and counters of long launches from short ones.

A launch is steps of a few classes: threadgroups, visits of a block of keys, visits by a simdgroup,
each of full blocks or of those that a sequence's end cuts short. Steps of one class do the same
work, so counters are linear in the numbers of steps: where the steps of a long launch are a sum of
multiples of those of short ones, so are its counters, exactly.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from flashmetal.engines.metal.tiles import Tile

Steps = Counter[tuple[str | int, ...]]
_SHORT = 5  # periods of the tile, in queries and in keys, that short launches have at most


class Shape(NamedTuple):
    """Lengths and windows of one sequence, as in :class:`flashmetal.problem.AttentionProblem`."""

    seqlen_q: int
    seqlen_k: int
    window_left: int = -1
    window_right: int = -1

    @property
    def has_left(self) -> bool:
        """Whether the kernel is compiled with the window's left side; ``has_right`` its right."""
        return 0 <= self.window_left < self.seqlen_k - 1

    @property
    def has_right(self) -> bool:
        return 0 <= self.window_right < self.seqlen_q - 1

    def keys_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first key that each row's band begins with, and the key behind its last."""
        diagonal = self.seqlen_k - self.seqlen_q
        begin, end = np.zeros_like(rows), np.full_like(rows, self.seqlen_k)
        if self.has_left:
            begin = np.maximum(rows + diagonal - self.window_left, 0)
        if self.has_right:
            end = np.clip(rows + diagonal + self.window_right + 1, 0, self.seqlen_k)
        return begin, end

    def pairs(self) -> int:
        """The pairs of a query and a key that are not masked."""
        begin, end = self.keys_of(np.arange(self.seqlen_q, dtype=np.int64))
        return int(np.maximum(end - begin, 0).sum())


def steps_of(shape: Shape, tile: Tile) -> Steps:
    """The steps of one head: (class, what distinguishes it) and how many there are.

    group: threadgroups, by their rows; visit: of a block of keys by a threadgroup, by its keys;
    visible: the same by a team of simdgroups that sees some of them, by its rows and keys; masked:
    those of them in which some pair is masked; kept: the pairs of those that are not.
    """
    steps: Steps = Counter()
    first = np.arange(0, shape.seqlen_q, tile.owned, dtype=np.int64)
    _count(steps, "group", [np.minimum(shape.seqlen_q - first, tile.owned)], np.ones_like(first))
    begin, end = shape.keys_of(first)[0], shape.keys_of(first + tile.owned - 1)[1]
    for keys, number in _blocks(begin, end, shape, tile.streamed):
        _count(steps, "visit", [keys], number)
    for offset in range(0, tile.owned, tile.rows):
        _count_visible(steps, first + offset, shape, tile)
    return Counter({step: number for step, number in steps.items() if number})


def _count_visible(steps: Steps, first: np.ndarray, shape: Shape, tile: Tile) -> None:
    """Adds the steps of the teams whose rows begin at ``first``."""
    last, streamed = first + tile.rows - 1, tile.streamed
    rows = np.clip(shape.seqlen_q - first, 0, tile.rows)
    (begin, right), (left, end) = shape.keys_of(first), shape.keys_of(last)
    visits = np.zeros_like(first)
    for keys, number in _blocks(begin, end, shape, streamed):
        _count(steps, "visible", [rows, keys], number)
        visits += number
    whole = np.maximum(right // streamed + -left // streamed, 0)
    whole = np.minimum(whole, visits)
    steps["masked",] += int((visits - whole).sum())
    each = np.minimum(np.add.outer(first, np.arange(tile.rows)), shape.seqlen_q - 1)
    least, most = shape.keys_of(each)
    kept = np.maximum(most - least, 0) * (np.arange(tile.rows) < rows[:, None])
    steps["kept",] += int(kept.sum() - (whole * rows).sum() * streamed)


def _blocks(
    begin: np.ndarray, end: np.ndarray, shape: Shape, streamed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys of a block, blocks) between keys: the whole ones, and the one at the sequence's end."""
    number = np.maximum(-(-end // streamed) - begin // streamed, 0)
    cut = shape.seqlen_k % streamed
    last = (number > 0) & (end > shape.seqlen_k - cut)
    yield np.full_like(number, streamed), number - last
    yield np.full_like(number, cut), last.astype(np.int64)


def _count(steps: Steps, name: str, facts: Sequence[np.ndarray], number: np.ndarray) -> None:
    for values in set(zip(*(fact.tolist() for fact in facts), strict=True)):
        same = np.all([fact == value for fact, value in zip(facts, values, strict=True)], axis=0)
        steps[(name, *values)] += int(number[same].sum())


class Extension(NamedTuple):
    """A long launch as a sum of multiples of short ones."""

    shapes: tuple[Shape, ...]
    factors: tuple[Fraction, ...]
    check: Shape
    check_factors: tuple[Fraction, ...]
    """Another short launch as a sum of the same: what it does must come out right."""

    def counters(self, counted: Mapping[Shape, Mapping[str, int]]) -> dict[str, int]:
        """The long launch's counters, from those of ``shapes`` and ``check``.

        ValueError where they are not linear in the steps.
        """
        own = [counted[shape] for shape in self.shapes]
        checked = _sum(self.check_factors, own)
        if checked != dict(counted[self.check]):
            wrong = {k: (v, checked[k]) for k, v in counted[self.check].items() if v != checked[k]}
            raise ValueError(f"counters of {self.check} are not linear in its steps: {wrong}")
        return _sum(self.factors, own)


def _sum(factors: Iterable[Fraction], counted: list[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    pairs = list(zip(factors, counted, strict=True))
    for name in counted[0]:
        amount = sum((factor * counters[name] for factor, counters in pairs), Fraction(0))
        if amount.denominator != 1:
            raise ValueError(f"{name} comes out as {amount}: it is not linear in the steps")
        total[name] = int(amount)
    return total


def extension(target: Shape, tile: Tile) -> Extension:
    """How to get at a long launch's counters: the cheapest short ones whose steps span its steps,
    and one more that they span.

    ValueError where no short launches do.
    """
    wanted, basis = steps_of(target, tile), _Basis()
    chosen: list[Shape] = []
    spare: list[Shape] = []
    for shape in _short(target, math.lcm(tile.owned, tile.streamed)):
        (chosen if basis.add(steps_of(shape, tile)) else spare).append(shape)
        factors = basis.combine(wanted)
        if factors is None:
            continue
        used = [i for i, factor in enumerate(factors) if factor]
        for check in (*spare, *_short(target, math.lcm(tile.owned, tile.streamed))):
            check_factors = basis.combine(steps_of(check, tile))
            if check not in chosen and check_factors is not None:
                used = sorted({*used, *(i for i, factor in enumerate(check_factors) if factor)})
                return Extension(
                    tuple(chosen[i] for i in used),
                    tuple(factors[i] for i in used),
                    check,
                    tuple(check_factors[i] for i in used),
                )
    raise ValueError(f"no short launches have the steps of {target} with {tile}")


def _short(target: Shape, period: int) -> list[Shape]:
    """Shapes that stand to a tile as the target does, in the order of their cost."""
    sizes = [[n for i in range(_SHORT) if (n := size % period + i * period)] for size in target[:2]]
    windows = [
        [window]
        if window <= 0
        else [n for i in range(_SHORT) if (n := window % period + i * period)]
        for window in target[2:]
    ]
    shapes = [Shape(*numbers) for numbers in itertools.product(*sizes, *windows)]
    alike = [
        shape
        for shape in shapes
        if (shape.has_left, shape.has_right) == (target.has_left, target.has_right)
        and (shape.seqlen_k >= shape.seqlen_q or target.seqlen_k < target.seqlen_q)
    ]
    return sorted(alike, key=lambda shape: (shape.seqlen_q * shape.seqlen_k, shape))


class _Basis:
    """Independent vectors of steps, by Gauss's elimination in fractions."""

    def __init__(self) -> None:
        self._rows: list[tuple[dict[tuple[str | int, ...], Fraction], dict[int, Fraction]]] = []
        self._size = 0

    def add(self, steps: Steps) -> bool:
        """Take in a vector, if it is independent of those that are there."""
        rest, made = self._reduce(steps)
        if not rest:
            return False
        made = {i: -factor for i, factor in made.items()}
        made[self._size] = Fraction(1)
        self._size += 1
        self._rows.append((rest, made))
        return True

    def combine(self, steps: Steps) -> list[Fraction] | None:
        """The factors of the vectors that add up to this one; None if none do."""
        rest, made = self._reduce(steps)
        return None if rest else [made.get(i, Fraction(0)) for i in range(self._size)]

    def _reduce(
        self, steps: Steps
    ) -> tuple[dict[tuple[str | int, ...], Fraction], dict[int, Fraction]]:
        """What is left of a vector, and what was taken from it of each that was added."""
        rest = {step: Fraction(number) for step, number in steps.items()}
        made: dict[int, Fraction] = {}
        for row, source in self._rows:
            pivot = next(iter(row))
            factor = rest.get(pivot, Fraction(0)) / row[pivot]
            if not factor:
                continue
            for step, number in row.items():
                left = rest.get(step, Fraction(0)) - factor * number
                rest[step] = left
                if not left:
                    del rest[step]
            for i, share in source.items():
                made[i] = made.get(i, Fraction(0)) + factor * share
        return rest, made
