"""What `metalsim profile` prints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .lines import Location
from .profile import LineCounters
from .timing import Prediction


class _Column(NamedTuple):
    """One figure of a line: its two words of title and the counters that it adds up."""

    title: tuple[str, str]
    names: tuple[str, ...]


_COLUMNS = (
    _Column(("matrix", "mult."), ("matrix_multiplies",)),
    _Column(("tensor", "FMA"), ("tensor_multiply_adds",)),
    _Column(("device", "bytes"), ("device_bytes_loaded", "device_bytes_stored")),
    _Column(("128 B", "lines"), ("device_lines_loaded", "device_lines_stored")),
    _Column(("group", "bytes"), ("threadgroup_bytes_loaded", "threadgroup_bytes_stored")),
    _Column(("bank", "confl."), ("bank_conflicts",)),
    _Column(("barr-", "iers"), ("threadgroup_barriers", "simdgroup_barriers")),
    _Column(("shuf.,", "reduc."), ("shuffles", "reductions", "votes")),
    _Column(("trans-", "cend."), ("exponentials", "logarithms", "square_roots", "trigonometric")),
    _Column(("ato-", "mics"), ("atomics",)),
)
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def totals_table(counters: Mapping[str, int]) -> str:
    """Counter and count, a line each; zeros are left out."""
    shown = {name.replace("_", " "): f"{count:,}" for name, count in counters.items() if count}
    width = max(map(len, shown), default=0)
    return "\n".join(f"  {name:<{width}}  {count:>16}" for name, count in shown.items())


def lines_table(
    lines: Sequence[LineCounters], text_of: Callable[[Location], str], width: int | None = None
) -> str:
    """A row a line: what it did, in columns that some line has, and the source's text as far as
    the terminal (or `width` characters) goes."""
    columns = [
        column
        for column in _COLUMNS
        if any(line.counters.get(name) for line in lines for name in column.names)
    ]
    width = width or shutil.get_terminal_size().columns
    single = len({line.location.file for line in lines if line.location}) <= 1
    rows = [["", *(column.title[0] for column in columns)]]
    rows.append(["line", *(column.title[1] for column in columns)])
    for line in lines:
        counts = (sum(line.counters.get(name, 0) for name in column.names) for column in columns)
        rows.append([_place(line.location, single), *(map(short, counts))])
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns) + 1)]
    texts = ["", "", *(_text(line.location, text_of) for line in lines)]
    printed = list[str]()
    for row, text in zip(rows, texts, strict=True):
        cells = [cell.rjust(size) for cell, size in zip(row, widths, strict=True)]
        printed.append(f"{' '.join(cells)}  {text}"[:width].rstrip())
    return "\n".join(printed)


def prediction_table(prediction: Prediction, chip: str) -> str:
    """The predicted time, and what each limit alone would take."""
    rows = sorted(prediction.limits.items(), key=lambda item: -item[1])
    said = f"{prediction.seconds * 1e6:,.1f} us, limit: {prediction.limit}"
    text = [f"predicted on {chip}: {said} (to rank variants; plain arithmetic is not counted)"]
    text += [f"  {name:<8}{seconds * 1e6:>12,.2f} us" for name, seconds in rows if seconds]
    return "\n".join(text)


def short(count: int) -> str:
    """Few digits and a unit: 1.3M; "" for nothing."""
    for scale, unit in _UNITS:
        if count >= scale:
            return f"{count / scale:.{0 if count >= 100 * scale else 1}f}{unit}"
    return str(count or "")


def _place(location: Location | None, single: bool) -> str:
    if location is None:
        return "?"
    return str(location.line) if single else f"{location.file.rpartition('/')[2]}:{location.line}"


def _text(location: Location | None, text_of: Callable[[Location], str]) -> str:
    return text_of(location).strip() if location else "(no line)"
