"""Holds metalsim.timing against attention timings that others published (published.txt).

Writes metalsim/docs/time_model.md. Nothing runs here but arithmetic: the work of each kernel comes
from what its authors say of it (published_work.py).
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from published_work import Problem, launches

from metalsim.timing import Chip, Prediction, chip, predict
from metalsim.timing.tables import read_table

_DIRECTORY = Path(__file__).parent
PAGE = _DIRECTORY.parent / "docs" / "time_model.md"
_CALLER = 97e-6
"""Seconds a call where the source waits for each: fitted on one row of mlx#4476."""
_LOWEST_GHZ = {"M1-Max": 0.396, "M3-Max": 0.338}
"""Clocks of an almost idle GPU: Quitetall/tritium#6, philipturner/applegpuinfo#15 (M3)."""


class Published(NamedTuple):
    """One published timing, in the columns of published.txt."""

    chip: str
    implementation: str
    kernel: str
    bits: int
    batch: int
    heads: int
    heads_k: int
    queries: int
    keys: int
    head_dim: int
    causal: bool
    alone: bool
    fitted: bool
    time: str
    note: str
    source: str

    @property
    def milliseconds(self) -> float:
        return float(self.time.rstrip("d"))

    @property
    def shape(self) -> str:
        sizes = f"{self.batch}x{self.heads}/{self.heads_k}x{self.queries}x{self.keys}"
        return f"{sizes} D{self.head_dim}{' causal' if self.causal else ''}"

    @property
    def name(self) -> str:
        return f"{self.chip} {self.implementation.replace('-', ' ')} {self.bits} bit {self.shape}"


class Note(NamedTuple):
    """A line of outside.txt."""

    name: str
    reason: str


def read_rows() -> list[Published]:
    """Every row of published.txt."""
    return read_table(_DIRECTORY / "published.txt", Published)


def read_notes() -> dict[str, str]:
    """The reasons of outside.txt, by name."""
    return {note.name: note.reason for note in read_table(_DIRECTORY / "outside.txt", Note)}


def predictions(row: Published, on: Chip) -> list[Prediction]:
    """The model's answer for each launch of a row."""
    problem = Problem(row.bits // 8, *row[4:11])
    return [predict(work, on) for work in launches(problem, row.kernel, on.family.number)]


@functools.cache
def milliseconds(row: Published, on: Chip) -> float:
    """The model's answer for a row."""
    seconds = sum(prediction.seconds for prediction in predictions(row, on))
    return (seconds + _CALLER * row.alone) * 1e3


def error(row: Published) -> float:
    """Of the prediction, as a fraction of the published time."""
    return _time(row) / row.milliseconds - 1


def outside(row: Published) -> bool:
    """Whether the prediction is off by more than 25%."""
    return abs(error(row)) > 0.25


def summary(rows: list[Published]) -> str:
    """The errors of `rows` in one sentence."""
    errors = [abs(error(row)) for row in rows]
    worst = max(rows, key=lambda row: abs(error(row)))
    within = sum(not outside(row) for row in rows)
    return (
        f"median error {statistics.median(errors):.1%}, worst {error(worst):+.0%} ({worst.name}), "
        f"{within} of {len(rows)} within 25%"
    )


def ranking(rows: list[Published]) -> str:
    """How many pairs of rows of the same call on the same chip, published as more than 10% apart,
    are predicted in the same order; a tie is not."""
    pairs = [
        (first, second)
        for first, second in itertools.combinations(rows, 2)
        if (first.chip, first[4:11]) == (second.chip, second[4:11])
        and abs(math.log(first.milliseconds / second.milliseconds)) > math.log(1.1)
    ]
    right = sum(
        (first.milliseconds - second.milliseconds) * (_time(first) - _time(second)) > 0
        for first, second in pairs
    )
    return f"{right} of {len(pairs)}"


def page() -> str:
    """docs/time_model.md."""
    rows = read_rows()
    free = [row for row in rows if not row.fitted]
    text = (_DIRECTORY / "time_model_page.md").read_text(encoding="ascii")
    facts = {
        "ALL": summary(free),
        "PREFILL": _of(free, lambda row: row.queries > 16),
        "DECODE": _of(free, lambda row: row.queries <= 16),
        "SETTLED": _of(free, lambda row: row.note not in ("clock", "spread", "drift")),
        "RANKED": ranking(rows),
        "OUTSIDE": "\n".join(map(_outside_line, filter(outside, free))),
        "NOTES": "\n".join(f"- {name}: {reason}" for name, reason in read_notes().items()),
        "TABLE": "\n".join(map(_line, rows)),
    }
    for name, value in facts.items():
        text = text.replace(f"@{name}@", value)
    return text


def _time(row: Published) -> float:
    return milliseconds(row, chip(row.chip))


def _of(rows: list[Published], taken: Callable[[Published], bool]) -> str:
    return summary([row for row in rows if taken(row)])


def _outside_line(row: Published) -> str:
    on = chip(row.chip)
    times = f"{milliseconds(row, on):.3g}"
    if row.note == "clock":
        times += f" to {milliseconds(row, on._replace(ghz=_LOWEST_GHZ[row.chip])):.3g}"
    return f"| {row.name} | {row.milliseconds:g} | {times} | {error(row):+.0%} | {row.note} |"


def _line(row: Published) -> str:
    answers = predictions(row, chip(row.chip))
    longest = max(answers, key=lambda answer: answer.seconds)
    cells = (
        row.chip,
        row.implementation.replace("-", " "),
        f"{row.bits} bit",
        row.shape,
        f"{row.milliseconds:g}{' (derived)' if row.time.endswith('d') else ''}",
        f"{_time(row):.3g}",
        f"{error(row):+.0%}",
        longest.limit,
        "yes" if row.fitted else "",
        row.source,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="ascii")
    print(summary(read_rows()))
