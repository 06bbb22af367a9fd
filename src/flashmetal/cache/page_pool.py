"""Which pages of a cache belong to which sequences: plain bookkeeping, without a tensor."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


class CacheFullError(RuntimeError):
    """A cache has fewer free pages than a call needs; nothing has changed."""


@dataclass
class PagedSequence:
    """One sequence: its pages in order, -1 for those evicted, its keys, and the pages it keeps
    whatever its keys."""

    pages: list[int] = field(default_factory=list[int])
    length: int = 0
    reserved: int = 0

    @property
    def evicted(self) -> int:
        """How many of the first pages are gone."""
        return sum(page < 0 for page in self.pages)


class PagePool:
    """Pages with reference counts, and the sequences that hold them."""

    def __init__(self, pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.sequences: dict[int, PagedSequence] = {}
        self._references = [0] * pages
        self._next = 0

    def find(self, method: str, sequence: int) -> PagedSequence:
        """The sequence, or ValueError."""
        found = self.sequences.get(sequence)
        if found is None:
            raise ValueError(
                f"PagedKVCache.{method}: there is no sequence {sequence!r}; it was released, or "
                "never allocated"
            )
        return found

    def allocate(self, tokens: int) -> int:
        """A new sequence that has the pages for ``tokens`` keys."""
        if tokens < 0:
            raise ValueError(f"PagedKVCache.allocate: tokens must be at least 0, got {tokens}")
        pages = self._pages_of(tokens)
        self._require("allocate", pages)
        sequence = PagedSequence(reserved=pages)
        self._grow(sequence, pages)
        return self._add(sequence)

    def fork(self, sequence: int) -> int:
        """A new sequence that shares the pages which hold keys."""
        old = self.find("fork", sequence)
        pages = old.pages[: self._pages_of(old.length)]
        for page in pages:
            if page >= 0:
                self._references[page] += 1
        return self._add(PagedSequence(pages, old.length))

    def release(self, sequence: int) -> None:
        """Drop a sequence and its references."""
        self._drop(self.find("release", sequence).pages)
        del self.sequences[sequence]

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first ``length`` keys, the pages that hold them and those that are reserved."""
        found = self.find("truncate", sequence)
        if not found.evicted * self.page_size <= length <= found.length:
            raise ValueError(
                f"PagedKVCache.truncate: length must lie between the "
                f"{found.evicted * self.page_size} evicted and the {found.length} keys of sequence "
                f"{sequence}, got {length}"
            )
        keep = max(self._pages_of(length), found.reserved)
        self._drop(found.pages[keep:])
        del found.pages[keep:]
        found.length = length

    def evict(self, sequence: int, keys: int) -> None:
        """Replace the pages that end at or before key ``keys`` by -1."""
        found = self.find("evict", sequence)
        if not 0 <= keys <= found.length:
            raise ValueError(
                f"PagedKVCache.evict: keys must lie between 0 and the {found.length} of sequence "
                f"{sequence}, got {keys}"
            )
        gone = keys // self.page_size
        self._drop(found.pages[:gone])
        found.pages[:gone] = [-1] * gone

    def reserve(self, sequences: Mapping[int, int]) -> list[tuple[int, int]]:
        """Find pages for new keys of each sequence, its alone; the (page, copy) to be copied."""
        shared: list[tuple[PagedSequence, int]] = []
        missing: list[tuple[PagedSequence, int]] = []
        writers: dict[int, int] = {}
        for number, count in sequences.items():
            found = self.find("step", number)
            if count < 0:
                raise ValueError(
                    f"PagedKVCache.step: the new tokens of sequence {number} must be at least 0, "
                    f"got {count}"
                )
            end = self._pages_of(found.length + count)
            missing.append((found, max(0, end - len(found.pages))))
            if count == 0:
                continue
            for index in range(found.length // self.page_size, min(end, len(found.pages))):
                page = found.pages[index]
                writers[page] = writers.get(page, 0) + 1
                # The last of the writers of a page that no other sequence reads may keep it.
                if writers[page] < self._references[page]:
                    shared.append((found, index))
        self._require("step", len(shared) + sum(count for _, count in missing))
        copies: list[tuple[int, int]] = []
        for found, index in shared:
            page, copy = found.pages[index], self._place(found, 1)
            self._references[page] -= 1
            self._references[copy] = 1
            found.pages[index] = copy
            copies.append((page, copy))
        for found, count in missing:
            self._grow(found, count)
        return copies

    @contextmanager
    def undoing(self, method: str, sequence: int) -> Generator[None]:
        """Take back the pages that a sequence gets within, if what is done there raises."""
        found = self.find(method, sequence)
        references, pages = [*self._references], [*found.pages]
        try:
            yield
        except BaseException:
            self._references, found.pages = references, pages
            raise

    def advance(
        self,
        sequences: Mapping[int, int],
        lengths: Sequence[int],
        pages: Sequence[Sequence[int]],
    ) -> None:
        """Count the new keys of sequences that had ``lengths`` keys and ``pages`` for all."""
        found = {number: self.find("commit", number) for number in sequences}
        for (number, sequence), length, held in zip(found.items(), lengths, pages, strict=True):
            if sequence.length != length or sequence.pages[: len(held)] != [*held]:
                raise ValueError(
                    f"PagedKVCache.commit: sequence {number} has changed since the step was made; "
                    "a step is committed once, before other changes of its sequences"
                )
        for number, sequence in found.items():
            sequence.length += sequences[number]

    def counts(self) -> tuple[int, int, int]:
        """(pages used, pages of several sequences, keys of all sequences)."""
        used = sum(count > 0 for count in self._references)
        shared = sum(count > 1 for count in self._references)
        sequences = self.sequences.values()
        return used, shared, sum(s.length - s.evicted * self.page_size for s in sequences)

    def defragment(self) -> dict[int, int]:
        """Renumber the pages by sequence, from 0; the new number of each page that moves."""
        order: dict[int, int] = {-1: -1}
        for sequence in self.sequences.values():
            for page in sequence.pages:
                order.setdefault(page, len(order) - 1)
        self._renumber(order)
        return {old: new for old, new in order.items() if old != new}

    def state(self) -> tuple[list[int], dict[str, Any]]:
        """The pages in use, and the sequences with pages numbered by their place among those."""
        pages = [page for page, count in enumerate(self._references) if count]
        order = {page: index for index, page in enumerate([-1, *pages], -1)}
        sequences = {
            str(number): [[order[page] for page in s.pages], s.length, s.reserved]
            for number, s in self.sequences.items()
        }
        return pages, {"sequences": sequences, "next": self._next}

    def restore(self, state: Mapping[str, Any]) -> int:
        """Take over a saved state; the pages it uses, which are the first."""
        found = {
            int(number): PagedSequence([int(page) for page in pages], *map(int, counts))
            for number, (pages, *counts) in state["sequences"].items()
        }
        pages = [page for sequence in found.values() for page in sequence.pages]
        held = max(pages, default=-1) + 1
        room = all(len(s.pages) >= self._pages_of(s.length) for s in found.values())
        if held > len(self._references) or min(pages, default=0) < -1 or not room:
            raise ValueError(
                f"PagedKVCache.load: the file's sequences use {held} pages, and the cache has "
                f"{len(self._references)}; load it with more pages"
            )
        self.sequences, self._next = found, int(state["next"])
        for page in pages:
            if page >= 0:
                self._references[page] += 1
        return held

    def _add(self, sequence: PagedSequence) -> int:
        number = self._next
        self._next += 1
        self.sequences[number] = sequence
        return number

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _require(self, method: str, pages: int) -> None:
        free = self._references.count(0)
        if pages > free:
            raise CacheFullError(
                f"PagedKVCache.{method}: {pages} pages are needed and {free} of "
                f"{len(self._references)} are free; release or evict sequences, or make a larger "
                "cache"
            )

    def _grow(self, sequence: PagedSequence, count: int) -> None:
        while count > 0:
            first = page = self._place(sequence, count)
            while count > 0 and page < len(self._references) and not self._references[page]:
                self._references[page] = 1
                sequence.pages.append(page)
                page += 1
                count -= 1
            assert page > first

    def _place(self, sequence: PagedSequence, count: int) -> int:
        """A free page: the neighbour, else of the smallest gap with room, or of the largest."""
        references = self._references
        neighbour = sequence.pages[-1] + 1 if sequence.pages else 0
        if 0 < neighbour < len(references) and references[neighbour] == 0:
            return neighbour
        gaps: list[tuple[int, int]] = []
        length = 0
        for page, used in enumerate([*references, 1]):
            if used == 0:
                length += 1
            elif length:
                gaps.append((length, page - length))
                length = 0
        fitting = [gap for gap in gaps if gap[0] >= count]
        return (min(fitting) if fitting else max(gaps))[1]

    def _drop(self, pages: Iterable[int]) -> None:
        for page in pages:
            if page >= 0:
                self._references[page] -= 1

    def _renumber(self, order: Mapping[int, int]) -> None:
        references = [0] * len(self._references)
        for old, new in order.items():
            if old >= 0:
                references[new] = self._references[old]
        self._references = references
        for sequence in self.sequences.values():
            sequence.pages = [order[page] for page in sequence.pages]
