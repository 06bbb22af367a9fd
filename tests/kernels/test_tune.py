"""`flashmetal tune` on the simulator: a forged clock, real kernels, and their proofs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import flashmetal
import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.machine_files import machine_file, machine_name
from flashmetal.engines.metal.measured import read_rows
from flashmetal.engines.metal.tiles import THREADGROUP_BYTES, Row, Tile, threadgroup_bytes
from flashmetal.gradients import QueryRows
from flashmetal.testing import make_inputs
from flashmetal.tools import tune_command
from flashmetal.tools.cli import _parser, main
from flashmetal.tools.tune import Outcome, Task, candidates, tune

from .simulated import bits, gpu_of

SHAPE: dict[str, Any] = {"seqlen_q": 40, "seqlen_k": 40, "heads_q": 1, "head_dim": 16}
ONE = [*("tune", "--device", "cpu", "--dtype", "float32", "--head-dim", "16", "--heads", "1")]
ONE += ["--seqlen", "40", "--repeats", "2"]


class Machine:
    """A simulated GPU that times a call by the tile of the kernel it last launched."""

    def __init__(
        self, milliseconds: dict[int, float], spoil: Callable[[str], str] = lambda source: source
    ) -> None:
        self._milliseconds = milliseconds  # by simdgroups of a threadgroup
        self._spoil = spoil
        self._last = 0
        self.runtime = Runtime(self._compile, "cpu", gpu_of("M1"))

    def _compile(self, source: str) -> Any:
        library = metalsim.compile_shader(self._spoil(source))
        simdgroups = re.findall(r"int SIMDGROUPS = (\d+)", source)  # none where there is no tile
        machine = self

        class Noting:
            def __getattr__(self, name: str) -> Callable[..., None]:
                def launch(*arguments: object, **options: Any) -> None:
                    machine._last = int(*simdgroups) or machine._last
                    getattr(library, name)(*arguments, **options)

                return launch

        return Noting()

    def clock(self, call: Callable[[], object]) -> float:
        call()
        return self._milliseconds[self._last]


def task_of(kernel: str = "forward", unit: str = "simdgroup", **fields: Any) -> Task:
    return Task(*make_inputs(**{**SHAPE, **fields}), kernel, unit)


def rows_of(task: Task, machine: Machine, simdgroups: tuple[int, ...]) -> list[Row]:
    served, *_ = candidates(task, machine.runtime)
    return [served._replace(tile=served.tile._replace(simdgroups=n)) for n in simdgroups]


def tuned(machine: Machine, task: Task, simdgroups: tuple[int, ...]) -> list[Outcome]:
    with metal_runtime(machine.runtime):
        return tune(task, rows_of(task, machine, simdgroups), machine.clock, repeats=1)


def test_the_fastest_comes_first_and_the_broken_one_last_with_its_reason() -> None:
    def spoil(source: str) -> str:
        if "int SIMDGROUPS = 2;" in source:
            return source.replace("M_LN2_F;", "M_LN2_F * 1.01f;")
        return source.replace("kernel", "colonel") if "int SIMDGROUPS = 8;" in source else source

    machine = Machine({1: 70.0, 2: 1.0, 4: 60.0}, spoil)
    outcomes = tuned(machine, task_of(), (4, 2, 8, 1))
    found = [(outcome.row.tile.simdgroups, outcome.median_ms) for outcome in outcomes]
    assert found == [(4, 60.0), (1, 70.0), (2, None), (8, None)]
    assert outcomes[2].note.startswith("AssertionError: lse is wrong at")
    assert outcomes[3].note.startswith("SyntaxError: attention_forward.metal:")


@pytest.mark.parametrize(
    "kernel", ["decode", "grad kv", pytest.param("grad q", marks=pytest.mark.long)]
)
def test_every_kernel_is_tuned(kernel: str) -> None:
    machine = Machine({1: 20.0, 2: 10.0})
    task = task_of(kernel, seqlen_q=3 if kernel == "decode" else 40)
    (first, second) = tuned(machine, task, (1, 2))
    assert (first.row.tile.simdgroups, second.row.tile.simdgroups) == (2, 1)
    assert first.row.kernel == kernel


@pytest.mark.parametrize(
    ("kernel", "unit", "head_dim"),
    [
        ("forward", "simdgroup", 128),
        ("forward", "tensor", 64),
        ("decode", "simdgroup", 64),
        ("grad q", "simdgroup", 256),
        ("grad kv", "tensor", 128),
    ],
)
def test_the_candidates_begin_with_what_serves_and_hold_to_the_budget(
    kernel: str, unit: str, head_dim: int
) -> None:
    task = task_of(kernel, unit, head_dim=head_dim, seqlen_k=4096, dtype=torch.float16)
    with metal_runtime(Runtime(lambda source: None, "cpu", Gpu.named("M5"))) as runtime:
        rows = candidates(task, runtime)
    assert len({(row.tile, row.split) for row in rows}) == len(rows) > 3
    for row in rows:
        assert threadgroup_bytes(kernel, row.tile, 2, head_dim, head_dim) <= THREADGROUP_BYTES
    assert len({row.split for row in rows}) == (1 if kernel != "decode" else 5)


def test_the_winner_is_kept_and_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHMETAL_CACHE_DIR", str(tmp_path))
    machine = Machine({1: 9.0, 2: 5.0, 4: 7.0})
    monkeypatch.setattr(
        tune_command, "candidates", lambda task, runtime: rows_of(task, machine, (4, 2, 1))
    )
    with metal_runtime(machine.runtime):
        assert tune_command.run(_parser().parse_args([*ONE, "--print-row"]), machine.clock) == 0
    streams = capsys.readouterr()
    row = Row.parse(streams.out.strip())
    assert (row.tile.simdgroups, row.size, row.head_dim, row.bits) == (2, "large", 16, 32)
    assert row.origin.startswith("measured: M1, ")
    assert "3 tiles, 0 of them not right; the one until now takes 7.000 ms" in streams.err
    kept = read_rows(machine_file("tiles", "M1"), machine_name("M1"))
    assert kept == (row,)
    q = torch.randn(1, 40, 1, 16)
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", gpu_of("M1"), measured_rows=kept)):
        tile = f"2 simdgroups, {row.tile.rows} rows by {row.tile.streamed} (measured: M1"
        assert tile in str(flashmetal.explain(q, q, q, impl="metal"))


def test_a_winner_that_cannot_be_kept_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLASHMETAL_CACHE_DIR", str(tmp_path / "file"))
    machine = Machine({1: 9.0, 2: 5.0, 4: 7.0})
    monkeypatch.setattr(
        tune_command, "candidates", lambda task, runtime: rows_of(task, machine, (4, 2, 1))
    )
    with metal_runtime(machine.runtime):
        assert tune_command.run(_parser().parse_args(ONE), machine.clock) == 1
    assert "cannot keep forward | simdgroup" in " ".join(capsys.readouterr().err.split())


def test_nothing_is_kept_where_nothing_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHMETAL_CACHE_DIR", str(tmp_path))
    with metal_runtime(Runtime(lambda source: None, "cpu", gpu_of("M1"))):
        assert main([*ONE, "--repeats", "1"]) == 1
    assert "No candidate is right" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_rows_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def unused(source: str) -> None:
        raise AssertionError("a dry run compiles nothing")

    with metal_runtime(Runtime(unused, "cpu", gpu_of("M1"))):
        assert main([*ONE, "--dry-run"]) == 0
    rows = list(map(Row.parse, capsys.readouterr().out.splitlines()))
    assert Tile(16, 8, 4, True) in [row.tile for row in rows]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--kernel", "grad-q", "--head-dim", "320"], "head dims up to 256"),
        (["--kernel", "decode", "--unit", "tensor"], "a decode has no tensor operations"),
    ],
)
def test_what_cannot_run_is_refused(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with metal_runtime(Runtime(lambda source: None, "cpu", gpu_of("M1"))):
        assert main([*ONE, *arguments]) == 1
    assert why in capsys.readouterr().err


def test_without_a_runtime_there_is_nothing_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ONE) == 1
    assert "no Metal runtime serves cpu tensors" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["simdgroup", pytest.param("tensor", marks=pytest.mark.long)])
def test_a_smaller_tile_gives_the_same_bits(unit: str) -> None:
    problem, inputs = make_inputs(
        **{**SHAPE, "seqlen_q": 70, "seqlen_k": 90, "window_left": 50, "window_right": 9},
        sinks=True,
        dtype=torch.float16,
    )
    results: list[list[torch.Tensor]] = []
    for cores in (1, 80):  # the tile of the table, and the smallest
        gpu = Gpu.named("M5" if unit == "tensor" else "M3", cores)
        with metal_runtime(Runtime(metalsim.compile_shader, "cpu", gpu)):
            o, lse = metal.forward(problem, inputs, kernel=unit)
            wanted = ("q", "k", "v", "sinks")
            gradients = metal.backward(problem, inputs, QueryRows(o, lse, o), wanted, unit)
        results.append([x for x in (o, lse, *gradients) if x is not None])
    assert all(map(torch.equal, bits(*results[0]), bits(*results[1])))
