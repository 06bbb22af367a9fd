"""Which tile a kernel runs with: measured here, from tiles.txt, or smaller for a small problem."""

from __future__ import annotations

import json
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

import flashmetal
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.machine_files import machine_file, machine_name
from flashmetal.engines.metal.measured import keep_row, read_rows
from flashmetal.engines.metal.tile_choice import Choice, choose_tile
from flashmetal.engines.metal.tiles import Row, Tile, row_of, tile_of
from flashmetal.problem import AttentionProblem
from flashmetal.testing import make_inputs

MACHINE = "M1, Darwin 26.2, torch 2.13.0"


def runtime(name: str, cores: int | None = None, rows: tuple[Row, ...] = ()) -> Runtime:
    return Runtime(lambda source: None, "cpu", Gpu.named(name, cores), measured_rows=rows)


def problem_of(**fields: Any) -> AttentionProblem:
    """One of float16 and D=64, without its tensors."""
    problem, _ = make_inputs(seqlen_q=1, heads_q=1, dtype=torch.float16)
    return problem._replace(**fields)


def chosen(problem: AttentionProblem, kernel: str = "forward", **options: Any) -> Choice:
    unit = options.pop("unit", "simdgroup")
    return choose_tile(problem, kernel, unit, runtime(**options))


def measured(**fields: Any) -> Row:
    row = row_of("forward", 7, 2, 64, 64)
    tile = row.tile._replace(streamed=8)
    return row._replace(**{"tile": tile, "head_dim": 64, "size": "large", **fields})


def test_a_row_is_its_line_of_text() -> None:
    lines = resources.files(metal).joinpath("tiles.txt").read_text().splitlines()
    rows = [line for line in lines if "|" in line and not line.startswith("#")][1:]
    assert [str(Row.parse(line)) for line in rows] == rows


@pytest.mark.parametrize(
    ("rows", "heads", "batch", "name", "cores", "owned"),
    [
        (4096, 8, 1, "M1", 8, 32),  # large
        (256, 1, 1, "M1", 8, 32),  # eight threadgroups: they fill the cores
        (128, 1, 1, "M1", 8, 16),
        (64, 1, 1, "M1", 8, 8),
        (8, 1, 1, "M1", 8, 8),  # there is no smaller one
        (64, 1, 4, "M1", 8, 32),
        (512, 2, 1, "M3 Ultra", 80, 8),  # of 64 rows: simdgroups are halved, then their rows
        (512, 2, 1, "M3", 10, 64),
    ],
)
def test_a_small_problem_takes_the_smallest_tile_that_fills_the_cores(
    rows: int, heads: int, batch: int, name: str, cores: int, owned: int
) -> None:
    problem = problem_of(seqlen_q=rows, seqlen_k=4096, heads_q=heads, batch=batch)
    choice = chosen(problem, name=name, cores=cores)
    assert choice.tile.owned == owned
    whole = tile_of("forward", Gpu.named(name).family, 2, 64, 64)
    assert choice.origin == "tiles.txt: budget" + (
        "" if choice.tile == whole else ", cut for so few rows"
    )


def test_every_kernel_counts_what_it_owns() -> None:
    """Gradients of k and v own keys of key heads; splits fill the cores of a decode."""
    problem = problem_of(seqlen_q=64, seqlen_k=4096, heads_q=8, heads_k=1)
    assert chosen(problem, "grad q", name="M1").tile.owned == 32
    assert chosen(problem, "grad kv", name="M1").tile.owned == 32
    assert chosen(problem._replace(seqlen_k=64), "grad kv", name="M1").tile.owned == 8
    step = problem_of(seqlen_q=1, seqlen_k=4096, heads_q=32, heads_k=1)
    assert chosen(step, "decode", name="M1").tile.rows == 16
    assert chosen(step._replace(heads_q=8), "decode", name="M1").tile.rows == 8


def test_a_team_stays_whole_and_a_fragment_too() -> None:
    long = problem_of(seqlen_q=8, seqlen_k=64, head_dim=576, head_dim_v=512)
    tile = chosen(long, name="M1").tile
    assert (tile.simdgroups, tile.team, tile.rows) == (4, 4, 8)
    tile = chosen(long, name="M5", unit="tensor").tile
    assert (tile.simdgroups, tile.team, tile.rows) == (4, 4, 16)


def test_a_measured_row_comes_before_tiles_txt() -> None:
    row = measured(origin=f"measured: {MACHINE}, 2026-11-21")
    problem = problem_of(seqlen_q=4096, seqlen_k=4096, heads_q=8)
    choice = chosen(problem, name="M1", rows=(row,))
    assert choice == Choice(row.tile, 0, row.origin)
    for other in (
        {"head_dim": 80, "head_dim_v": 80},
        {"dtype": torch.float32},
        {"seqlen_q": 64, "heads_q": 1},  # small
    ):
        assert chosen(problem._replace(**other), name="M1", rows=(row,)).origin.startswith("tiles")
    assert chosen(problem, "grad q", name="M1", rows=(row,)).origin.startswith("tiles.txt")


def test_a_measured_row_that_does_not_fit_other_head_dims_is_passed_over() -> None:
    """It was measured for D=256 and Dv=64, where both fit; staged keys and values here do not."""
    tile = Tile(32, 8, 4, False)
    row = measured(head_dim=256, tile=tile)
    problem = problem_of(seqlen_q=4096, heads_q=8, head_dim=256, head_dim_v=64)
    assert chosen(problem, name="M1", rows=(row,)).tile == tile
    assert chosen(problem._replace(head_dim_v=256), name="M1", rows=(row,)).tile != tile


def test_the_rows_of_a_file_are_those_that_were_kept(tmp_path: Path) -> None:
    path = tmp_path / "tiles" / "here.json"
    assert read_rows(path, MACHINE) == ()
    first, other = measured(origin="one"), measured(head_dim=128)
    keep_row(path, MACHINE, first)
    keep_row(path, MACHINE, other)
    keep_row(path, MACHINE, better := first._replace(tile=Tile(16, 8, 2, True), origin="two"))
    assert read_rows(path, MACHINE) == (better, other)


@pytest.mark.parametrize(
    "machine", ["M2, Darwin 26.2, torch 2.13.0", "M1, Darwin 15.1, torch 2.13.0", "M1"]
)
def test_rows_of_another_machine_are_not_taken(tmp_path: Path, machine: str) -> None:
    path = tmp_path / "tiles.json"
    keep_row(path, machine, measured())
    with pytest.warns(RuntimeWarning, match=f"not used.*it is of {machine}.*tiles.txt serves"):
        assert read_rows(path, MACHINE) == ()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"machine": 1}', '{"machine": "%s", "rows": ["forward | simdgroup"]}'],
)
def test_a_file_that_cannot_be_read_is_a_warning(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tiles.json"
    path.write_text(text.replace("%s", MACHINE))
    with pytest.warns(RuntimeWarning, match=r"measured tiles in .*tiles\.json are not used"):
        assert read_rows(path, MACHINE) == ()


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        (0, "sideways", "kernel"),
        (1, "warp", "unit"),
        (5, "huge", "size"),
        (8, "3.5", "invalid literal"),
        (9, "3", "teams"),
        (10, "cloud", "registers or device"),
    ],
)
def test_a_row_of_nonsense_says_what_is_wrong(column: int, value: str, why: str) -> None:
    cells = str(measured()).split("|")
    cells[column] = value
    with pytest.raises(ValueError, match=why):
        Row.parse("|".join(cells))


def test_explain_says_where_a_tile_comes_from() -> None:
    q = torch.randn(1, 4096, 8, 64, dtype=torch.float16)
    with metal_runtime(runtime("M1", rows=(measured(origin="measured: M1"),))):
        words = str(flashmetal.explain(q, q, q, impl="metal"))
        assert "tile of forward: 4 simdgroups, 8 rows by 8 (measured: M1)" in words
        assert "(tiles.txt: model)" in str(flashmetal.explain(*[q.float()] * 3, impl="metal"))
        trained = flashmetal.explain(*[q.requires_grad_()] * 3, impl="metal")
        assert any(x.startswith("tile of grad kv: ") for x in trained.tiles)
        assert flashmetal.explain(q, q, q, impl="reference").tiles == ()


def test_the_file_is_of_chip_system_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMETAL_CACHE_DIR", "/somewhere")
    path = machine_file("tiles", "M3 Max")
    assert path.parent == Path("/somewhere/tiles")
    assert path.name.startswith("M3_Max_")
    assert torch.__version__ in path.name
    assert torch.__version__ in machine_name("M3 Max")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    keep_row(path, MACHINE, measured())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep_row(path, MACHINE, measured())
    assert json.loads(path.read_text())["machine"] == MACHINE
    assert list(tmp_path.iterdir()) == [path]
