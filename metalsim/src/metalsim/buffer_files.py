"""Buffers of the command line: from words to numpy arrays, and what a launch did to them."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import ArgumentError

FORMS = (
    "a number (an integer is a long, a fraction a float), TYPE:NUMBER (uint32:64), FILE.npy, "
    "FILE.npy:TYPE (converted to it), or zeros, ones, arange or random:TYPE:SHAPE "
    "(zeros:float32:64x64)"
)
_FILLS = ("zeros", "ones", "arange", "random")


class Buffer(NamedTuple):
    """One slot: the word it was given by, what goes to the kernel, and its content before."""

    slot: int
    word: str
    value: Any
    before: Any

    def summary(self) -> str:
        """What the launch changed, in one line."""
        array = self.value
        name = f"buffer {self.slot}: {self.word}, {array.dtype} {_times(array.shape)}"
        changed = np.count_nonzero(~_same(array, self.before))
        if not changed:
            return f"{name}: unchanged"
        text = f"{name}: {changed} of {array.size} elements changed"
        if array.dtype.kind not in "iuf":
            return text
        nans = np.count_nonzero(np.isnan(array))
        if nans < array.size:
            text += f", now from {np.nanmin(array):g} to {np.nanmax(array):g}"
        return f"{text}, {nans} NaN" if nans else text

    def difference(self, expected: Path, rtol: float, atol: float) -> str | None:
        """The first element that is not as in the file `expected`; None where all are."""
        want = np.load(expected)
        got = self.value
        if got.shape != want.shape:
            return f"has shape {_times(got.shape)}, {expected} {_times(want.shape)}"
        wrong = ~np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
        if not wrong.any():
            return None
        at = tuple(int(index) for index in np.argwhere(wrong)[0])
        return (
            f"differs from {expected} in {np.count_nonzero(wrong)} of {got.size} elements; first "
            f"at {list(at)}: {got[at]}, expected {want[at]}"
        )

    def save(self, directory: Path) -> Path:
        """Write the array to `directory`."""
        path = directory / f"buffer{self.slot}.npy"
        np.save(path, self.value)
        return path


def read_buffer(slot: int, word: str) -> Buffer:
    """The buffer that `word` describes, one of FORMS. Raises ArgumentError, OSError, ValueError."""
    value = _read(slot, word)
    is_array = isinstance(value, np.ndarray)
    return Buffer(slot, word, value, value.copy() if is_array else None)


def _read(slot: int, word: str) -> Any:
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(word)
    head, _, rest = word.partition(":")
    if head in _FILLS and ":" in rest:
        name, _, shape = rest.partition(":")
        return _filled(head, _type(word, name), _shape(word, shape), slot)
    file = re.fullmatch(r"(.+\.npy)(?::(\w+))?", word)
    if file:
        array = np.ascontiguousarray(np.load(file[1]))
        return array.astype(_type(word, file[2])) if file[2] else array
    if rest:
        return _type(word, head).type(rest)
    raise ArgumentError(f"--buffers {word}: expected {FORMS}")


def _filled(fill: str, dtype: np.dtype[Any], shape: tuple[int, ...], seed: int) -> Any:
    if fill == "random":
        generator = np.random.default_rng(seed)
        if dtype.kind == "f":
            return generator.standard_normal(shape).astype(dtype)
        return generator.integers(0, 100, shape).astype(dtype)
    if fill == "arange":
        return np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    return np.full(shape, int(fill == "ones"), dtype)


def _type(word: str, name: str) -> np.dtype[Any]:
    try:
        return np.dtype({"half": "float16", "float": "float32"}.get(name, name))
    except TypeError:
        raise ArgumentError(
            f"--buffers {word}: {name!r} is no type of numpy: float32, float16, int32, uint32, ..."
        ) from None


def _shape(word: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise ArgumentError(f"--buffers {word}: expected a shape like 64x64, not {text!r}")
    return tuple(int(size) for size in text.split("x"))


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _same(array: Any, other: Any) -> Any:
    return (array == other) | ((array != array) & (other != other))
