"""The function and the command around the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import metalsim
from metalsim.cli import main
from metalsim.linter import command

WRONG = """#include <metal_stdlib>
using namespace metal;
kernel void wrong(device float* out, uint i [[thread_position_in_grid]]) {
  threadgroup float tile[32];
  device float* alias = tile;
  double x = alias[0];
}
"""
RIGHT = "kernel void right(device float* out) { out[0] = 1; }\n"


def rules(findings: list[metalsim.LintFinding]) -> list[str]:
    return [finding.rule for finding in findings]


def test_a_finding_tells_rule_place_and_message() -> None:
    finding, _ = metalsim.lint(WRONG)
    assert finding == (
        "address-space",
        "program_source",
        5,
        17,
        finding.message,
    )
    assert finding.message == (
        "cannot initialize a variable of type 'device float *' with an lvalue of type "
        "'threadgroup float[32]'"
    )
    assert str(finding) == f"program_source:5:17: error: {finding.message} [address-space]"


def test_findings_come_in_the_order_of_the_source() -> None:
    source = "inline void f(float* a, float& b) { double x; }\ninline void g(float* c) {}\n"
    findings = metalsim.lint(source)
    assert rules(findings) == ["address-space", "address-space", "double", "address-space"]
    assert [finding.line for finding in findings] == [1, 1, 1, 2]


def test_what_the_front_end_refuses_hides_nothing_behind_it() -> None:
    source = """float counter = 0;
inline void f(float* a) {}
kernel void twice(device float* x [[buffer(0)]], device float* y [[buffer(0)]]) {
  threadgroup int count = 0;
  inner([](float b) { return b; });
}
kernel int returns(device float* x, device float2* y [[thread_position_in_grid]]) {}
"""
    assert [(finding.line, finding.rule) for finding in metalsim.lint(source)] == [
        (1, "program-scope"),
        (2, "address-space"),
        (3, "buffer-index"),
        (4, "source"),
        (5, "lambda"),
        (7, "attribute"),
    ]


def test_included_files_are_linted(tmp_path: Path) -> None:
    (tmp_path / "own.h").write_text("inline void f(float* a) {}\n")
    (finding,) = metalsim.lint(f'#include "own.h"\n{RIGHT}', include_dirs=[tmp_path])
    assert (finding.source, finding.line, finding.column) == ("own.h", 1, 20)


def test_macros_are_reported_where_they_are_used() -> None:
    source = f"#define COPY(to, from) device float* to = from;\n{WRONG}".replace(
        "device float* alias = tile;\n  double x = alias[0];", "COPY(alias, tile)"
    )
    (finding,) = metalsim.lint(source)
    assert (finding.rule, finding.line, finding.column) == ("address-space", 6, 8)


def test_without_clang_the_other_rules_hold() -> None:
    assert rules(metalsim.lint(WRONG)) == ["address-space", "double"]
    assert rules(metalsim.lint(WRONG, use_clang=False)) == ["double"]


def test_function_constants_need_no_value() -> None:
    constant = "constant int size [[function_constant(0)]];\n"
    assert metalsim.lint(f"{constant}{RIGHT.replace('= 1', '= size')}") == []


CONSTANTS = """#include <metal_stdlib>
using namespace metal;
constant uint size [[function_constant(0)]];
constant bool masked [[function_constant(1)]];
constant bool wide = is_function_constant_defined(size) && size > 4;
constant uint doubled = wide ? 2 * size : size;
template <int N>
float twice() { return 2 * N; }
kernel void k(device float* out, constant float& bias [[function_constant(masked)]]) {
  float sum = doubled;
  if (masked && wide) sum += size;
"""


@pytest.mark.parametrize(
    ("use", "rule"),
    [
        ("for (uint i = 0; i < size; ++i) sum += min(i, doubled);", None),
        ("float list[size]; sum = list[0];", "variable-length-array"),
        ("float list[doubled]; sum = list[0];", "variable-length-array"),
        ("sum = twice<size>();", "type"),
        ("if constexpr (size > 1) sum = 1;", "type"),
        ('static_assert(size < 2, "");', "type"),
    ],
)
def test_function_constants_are_no_constant_expressions(use: str, rule: str | None) -> None:
    found = metalsim.lint(f"{CONSTANTS}  {use}\n  out[0] = sum;\n}}\n")
    assert [(one.rule, one.line) for one in found] == ([(rule, 12)] if rule else [])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="lint: metal_version is '3', expected one of 3.0, 3.1"):
        metalsim.lint(RIGHT, metal_version="3")
    with pytest.raises(TypeError, match="lint: include_dirs must be a list"):
        metalsim.lint(RIGHT, include_dirs="folder")


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.metal").write_text(WRONG)
    Path("right.metal").write_text(RIGHT)
    assert main(["lint", "right.metal"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["lint", "--ignore", "address-space", "right.metal", "wrong.metal"]) == 1
    assert capsys.readouterr().out == (
        "wrong.metal:6:3: error: 'double' is not supported in Metal [double]\n"
        "    double x = alias[0];\n"
        "    ^\n"
    )
    assert main(["lint", "missing.metal"]) == 2


def test_command_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wrong.metal"
    path.write_text(WRONG)
    assert main(["lint", "--json", str(path)]) == 1
    _, record = json.loads(capsys.readouterr().out)
    assert record == {
        "file": str(path),
        "rule": "double",
        "source": "program_source",
        "line": 6,
        "column": 3,
        "message": "'double' is not supported in Metal",
    }


def test_command_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "right.metal"
    path.write_text(RIGHT)
    monkeypatch.setattr(command, "find_clang", lambda: None)
    assert main(["lint", str(path)]) == 0
    assert "there is no clang here" in capsys.readouterr().err
