"""Lengths that nobody writes to any more: what is read or made of them is kept with them.

Every layer of a model asks the same of the lengths of a step. Who makes such tensors, and hands
them to nobody who would write to them, may say so; those of a caller are read at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

_ATTRIBUTE = "_flashmetal_settled"
_dispatch_modes: Any = torch._C._len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
_T = TypeVar("_T")


class _Kept(dict[Hashable, Any]):
    """What was made of tensors that belong together."""


class _Mark(NamedTuple):
    kept: Callable[[], _Kept | None]
    version: int


def settle(*lengths: Tensor) -> None:
    """Say that these tensors, which belong together, will not change.

    A write that torch counts makes them common tensors again; in inference mode it counts none.
    """
    if torch.compiler.is_compiling() or _common(lengths) is not None:
        return
    kept = _Kept()
    for x in lengths:
        setattr(x, _ATTRIBUTE, _Mark(lambda: kept, _version(x)))


def once(lengths: tuple[Tensor | None, ...], name: Hashable, make: Callable[[], _T]) -> _T:
    """What ``make`` makes of the ``lengths`` that are given; once, if they were settled together.

    A tensor that it makes, or a tuple of them, is settled with them. None counts as not given.
    """
    kept = None if torch.compiler.is_compiling() or _dispatch_modes() else _common(lengths)
    if kept is None:
        return make()
    name = name, torch.is_inference_mode_enabled()
    if name not in kept:
        made = kept[name] = make()
        mark = weakref.ref(kept)  # what is kept must not keep itself alive
        parts = cast("tuple[object, ...]", made if isinstance(made, tuple) else (made,))
        for x in parts:
            if isinstance(x, Tensor):
                setattr(x, _ATTRIBUTE, _Mark(mark, _version(x)))
    return kept[name]


def _common(lengths: tuple[Tensor | None, ...]) -> _Kept | None:
    """What is kept with all of the tensors; None if one of them changed or belongs elsewhere."""
    kept = None
    for x in lengths:
        if x is None:
            continue
        mark: _Mark | None = getattr(x, _ATTRIBUTE, None)
        if mark is None or mark.version != _version(x):
            return None
        own = mark.kept()
        if own is None or kept is not None and own is not kept:
            return None
        kept = own
    return kept


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
