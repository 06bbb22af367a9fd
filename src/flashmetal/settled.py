"""Lengths that nobody writes to any more: what is read or made of them is kept with them.

Every layer of a model asks the same of the lengths of a step. Who makes such tensors, and hands
them to nobody who would write to them, may say so; those of a caller are read at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from .modes import is_plain

_ATTRIBUTE = "_flashmetal_settled"
_T = TypeVar("_T")


class _Kept:
    """What was made of tensors that belong together, and how many they are."""

    def __init__(self) -> None:
        self.made: dict[Hashable, Any] = {}
        self.tensors = 0


class _Mark:
    """On a tensor: what is kept with it, its number there, and its version. A copy has none."""

    def __init__(self, kept: Callable[[], _Kept | None], number: int, version: int) -> None:
        self.kept, self.number, self.version = kept, number, version

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def settle(*lengths: Tensor) -> None:
    """Say that these tensors, which belong together, will not change.

    A write that torch counts makes them common tensors again. It counts none to tensors that were
    made in inference mode.
    """
    if torch.compiler.is_compiling() or _is_recorded() or _common(lengths) is not None:
        return
    kept = _Kept()
    for x in lengths:
        _mark(x, kept, lambda: kept)


def once(lengths: tuple[Tensor | None, ...], name: Hashable, make: Callable[[], _T]) -> _T:
    """What ``make`` makes of the ``lengths`` that are given; once, if they were settled together.

    ``name`` holds all else that it depends on. A tensor that it makes, or a tuple of them, is
    settled with them. None counts as not given. Each CUDA stream has its own: what another was
    told to make may not be there yet, or be gone with its last user there.
    """
    found = _common(lengths) if is_plain() and not _is_recorded() else None
    if found is None:
        return make()
    kept, numbers = found
    stream = torch.cuda.current_stream().cuda_stream if torch.cuda.is_initialized() else 0
    name = name, numbers, torch.is_inference_mode_enabled(), stream
    if name not in kept.made:
        made = kept.made[name] = make()
        parts = cast("tuple[object, ...]", made if isinstance(made, tuple) else (made,))
        for x in parts:
            if isinstance(x, Tensor):
                _mark(x, kept, weakref.ref(kept))  # what is kept must not keep itself alive
    return kept.made[name]


def _mark(x: Tensor, kept: _Kept, reference: Callable[[], _Kept | None]) -> None:
    setattr(x, _ATTRIBUTE, _Mark(reference, kept.tensors, _version(x)))
    kept.tensors += 1


def _common(lengths: tuple[Tensor | None, ...]) -> tuple[_Kept, tuple[int | None, ...]] | None:
    """What is kept with all of the tensors, and their numbers there.

    None if one of them changed or belongs elsewhere.
    """
    kept, numbers = None, list[int | None]()
    for x in lengths:
        if x is None:
            numbers.append(None)
            continue
        mark: _Mark | None = getattr(x, _ATTRIBUTE, None)
        own = None if mark is None else mark.kept()
        if mark is None or own is None or mark.version != _version(x):
            return None
        if kept is not None and own is not kept:
            return None
        kept = own
        numbers.append(mark.number)
    return None if kept is None else (kept, tuple(numbers))


def _is_recorded() -> bool:
    """Whether a CUDA graph takes the work down instead of doing it: results hold nothing yet."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
