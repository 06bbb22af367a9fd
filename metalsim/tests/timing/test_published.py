"""The study of published timings, and the page that it writes."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from metalsim.timing import chip, chips, predict

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """benchmarks/time_model.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("time_model")
    for name in ("time_model", "published_work"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def published_work(study: ModuleType) -> ModuleType:
    """benchmarks/published_work.py."""
    return sys.modules["published_work"]


def test_the_page_is_not_stale(study: ModuleType):
    assert study.PAGE.read_text(encoding="ascii") == study.page()


def test_the_readme_says_the_same(study: ModuleType):
    errors = study.summary([row for row in study.read_rows() if not row.fitted])
    numbers = re.fullmatch(r"(median .*, worst .*) \(.*\), (.*)", errors)
    readme = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    assert numbers
    assert ", ".join(numbers.groups()) in readme


def test_published_rows_are_all_described(study: ModuleType):
    rows = study.read_rows()
    assert len(rows) >= 58
    assert sum(row.fitted for row in rows) == 1
    assert all(row.chip in chips() for row in rows)


def test_a_row_has_a_note_if_and_only_if_it_is_outside(study: ModuleType):
    notes = study.read_notes()
    rows = [row for row in study.read_rows() if not row.fitted]
    assert {row.name for row in rows if row.note != "-"} == {
        row.name for row in rows if study.outside(row)
    }
    assert {row.note for row in rows} - {"-"} == set(notes)


def test_pairs_are_ranked_among_rows_of_one_call(study: ModuleType):
    fused = [row for row in study.read_rows() if row.chip == "M3-Max" and row.head_dim == 256]
    assert [row.milliseconds for row in fused] == [78.45, 154.5, 37.73]
    assert study.ranking(fused) == "3 of 3"
    assert study.ranking([fused[0], fused[0]._replace(time="99")]) == "0 of 1"
    assert study.ranking([fused[0], fused[0]._replace(time="79"), fused[1]._replace(keys=1)]) == (
        "0 of 0"
    )


@pytest.mark.parametrize("part", ["matrix", "ALU", "L1", "L2", "latency", "DRAM"])
def test_each_part_matters_to_some_row(study: ModuleType, part: str):
    limits = [
        answer.limit
        for row in study.read_rows()
        for answer in study.predictions(row, chip(row.chip))
    ]
    assert part in limits


def test_causal_scores_of_blocks(published_work: ModuleType):
    """Two blocks of 64 rows see 64 and 128 keys, in blocks of 32; with more keys, those before."""
    kernel = published_work.kernels()["nax"]
    problem = published_work.Problem(2, 1, 1, 1, 128, 128, 64, True)
    assert published_work.visited_scores(problem, kernel) == 64 * (64 + 128)
    longer = problem._replace(keys=200)
    assert published_work.visited_scores(longer, kernel) == 64 * (160 + 200)
    assert published_work.visited_scores(longer._replace(causal=False), kernel) == 128 * 200
    few = problem._replace(queries=12, causal=False)
    assert published_work.visited_scores(few, kernel) == 64 * 128


def test_fragments_that_wait_are_what_makes_d_256_slow(published_work: ModuleType):
    problem = published_work.Problem(2, 1, 24, 24, 4096, 4096, 256, False)
    (work,) = published_work.launches(problem, "steel-256", 7)
    waiting = predict(work, chip("M1-Max")).seconds
    assert predict(work._replace(load_waits=0), chip("M1-Max")).seconds < 0.6 * waiting
