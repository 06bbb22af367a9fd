"""Changes of the package within the ranks: rules broken one by one, ranks that fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from flashmetal.distributed import groups, ring, sharding, ulysses


@contextmanager
def _forgetting() -> Generator[None]:
    """What was cut before and after the change is not used."""
    for cached in (sharding.cached_meetings, sharding.cached_steps, sharding.cached_index):
        cached.cache_clear()
    yield
    for cached in (sharding.cached_meetings, sharding.cached_steps, sharding.cached_index):
        cached.cache_clear()


def _patched(owner: Any, name: str, change: Callable[[Any], Any]) -> Callable[[int], Any]:
    """``change`` makes the new function from the old one."""

    @contextmanager
    def apply(rank: int) -> Generator[None]:
        del rank
        with _forgetting(), mock.patch.object(owner, name, change(getattr(owner, name))):
            yield

    return apply


def _equal_weights(merge: Any) -> Any:
    def merged(total: Any, rows: Any, part: Any) -> None:
        if part[0] is not None:
            part = part[0], torch.zeros_like(part[1])
        merge(total, rows, part)

    return merged


def _twice_the_sink(merge: Any) -> Any:
    def merged(total: Any, rows: Any, part: Any) -> None:
        merge(total, rows, part)
        if part[0] is None:
            merge(total, rows, part)

    return merged


def _own_lse(backward: Any) -> Any:
    def of_piece(call: Any, meeting: Any, tensors: Any, rows: Any) -> Any:
        o, lse = ring.attend(*call.call(meeting, *tensors))
        own = ring._taken(rows, meeting.q)._replace(o=o, lse=lse)
        with mock.patch.object(ring, "_taken", return_value=own):
            return backward(call, meeting, tensors, rows)

    return of_piece


def _strays(shift: Any) -> Any:
    def shifted(ranks: Any, tensors: Any, like: Any, by: int) -> Any:
        return shift(ranks, tensors, like, by) if by > 0 else mock.Mock(wait=lambda: tensors)

    return shifted


def _as_they_come(cut: Any, seqlens: Any, rank: int, device: Any) -> Any:
    first = sum(sum(cut.lengths(seqlens, before)) for before in range(rank))
    return torch.arange(first, first + sum(cut.lengths(seqlens, rank)), device=device)


def _wider(left: int, right: int) -> Callable[[Any], Any]:
    def change(visible: Any) -> Any:
        return lambda q, k, at, window: visible(q, k, at, (window[0] + left, window[1] + right))

    return change


BROKEN: dict[str, tuple[Callable[[int], Any], str, str]] = {
    "parts weigh the same": (_patched(ring, "_merge", _equal_weights), "ring", "plain"),
    "the sink counts twice": (_patched(ring, "_merge", _twice_the_sink), "ring", "sinks"),
    "top-left": (
        _patched(sharding, "visible", lambda old: lambda q, k, _, window: old(q, k, 0, window)),
        "ring",
        "causal",
    ),
    "right bound off by one": (_patched(sharding, "visible", _wider(0, 1)), "ring", "window"),
    "left bound off by one": (_patched(sharding, "visible", _wider(1, 0)), "ring", "window"),
    "backward by a piece's own lse": (_patched(ring, "_piece_backward", _own_lse), "ring", "plain"),
    "gradients of keys stay where they are": (
        _patched(groups.Ranks, "shift", _strays),
        "ring",
        "batch",
    ),
    "the gradient at lse is dropped": (
        _patched(ring, "_taken", lambda old: lambda *x: old(*x)._replace(grad_lse=None)),
        "ring",
        "plain",
    ),
    "a sink without a gradient": (
        _patched(ring, "sink_gradient", lambda old: lambda *x: torch.zeros_like(old(*x))),
        "ring",
        "sinks",
    ),
    "rows in the order of the ranks": (
        _patched(ulysses, "cached_index", lambda _: _as_they_come),
        "ulysses",
        "causal",
    ),
}


def _fails_in_its_second_call(end: Callable[[], Any]) -> Callable[[int], Any]:
    @contextmanager
    def apply(rank: int) -> Generator[None]:
        calls: list[int] = []

        def attend(*call: Any) -> Any:
            calls.append(rank)
            return end() if rank == 2 and len(calls) == 2 else real(*call)

        real = ring.attend
        with mock.patch.object(ring, "attend", attend), mock.patch.object(ulysses, "attend", end):
            yield

    return apply


def _raise() -> None:
    raise RuntimeError("out of memory")


CHANGES: dict[str, Callable[[int], Any]] = {
    **{name: change for name, (change, *_) in BROKEN.items()},
    "a rank dies": _fails_in_its_second_call(lambda: os._exit(1)),
    "a rank raises": _fails_in_its_second_call(_raise),
    "short calls": _patched(sharding, "MOST_ROWS", lambda _: 7),
    "through copies": _patched(groups, "_on_carrier", lambda _: lambda x, group: x.cpu().clone()),
}
