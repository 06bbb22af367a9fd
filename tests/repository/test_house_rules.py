"""The rules of CONTRIBUTING.md that a machine can check."""

from __future__ import annotations

import ast
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLASHMETAL = ROOT / "src" / "flashmetal"
METALSIM = ROOT / "metalsim" / "src" / "metalsim"
# What the modules of flashmetal may not import: the arrows point the other way.
FORBIDDEN = {
    "cache/formats.py": {"problem", "api", "ops", "plan", "engines", "integrations", "tools"},
    "request.py": {"checks", "problem", "api", "ops", "plan", "engines", "integrations", "tools"},
    "checks.py": {"problem", "api", "ops", "plan", "engines", "integrations", "tools"},
    "problem.py": {"api", "ops", "plan", "engines", "integrations", "tools"},
    "plan.py": {"api", "ops", "integrations", "tools"},
    "ops.py": {"api", "cache.api", "integrations", "tools"},
    "reference.py": {"api", "ops", "plan", "engines", "integrations", "tools"},
    "engines": {"api", "ops", "plan", "cache.api", "cache.ops", "integrations", "tools"},
    "cache": {"api", "integrations", "tools"},
    "distributed": {"api", "engines", "integrations", "reference"},
    "integrations": {"problem", "ops", "plan", "engines", "reference"},
}


def sources(*suffixes: str) -> list[Path]:
    folders = [
        ROOT / name
        for name in ("src", "metalsim", "tests", "benchmarks", "examples", "hub", "docs")
    ]
    found = [path for folder in folders for s in suffixes for path in folder.rglob(f"*.{s}")]
    assert found
    return found


def imported(path: Path, package: Path) -> set[str]:
    """Modules a file of ``package`` imports, each by its full name, such as "flashmetal.plan"."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            targets = [node.module] if node.module else [alias.name for alias in node.names]
            folder = path.parents[max(node.level - 1, 0)].relative_to(package.parent)
            prefix = folder.parts if node.level else ()
            names |= {".".join((*prefix, target)) for target in targets}
    return names


def test_files_are_at_most_500_lines() -> None:
    lengths = {p: len(p.read_text().splitlines()) for p in sources("py", "metal", "h", "cpp")}
    assert not {path: length for path, length in lengths.items() if length > 500}


def test_functions_are_at_most_60_lines() -> None:
    functions = {
        (path, node.name): (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources("py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: length for name, length in functions.items() if length > 60}


def test_metal_sources_are_ascii() -> None:
    shaders = list((FLASHMETAL / "engines" / "metal" / "msl").iterdir())
    assert shaders
    assert not [path for path in shaders if not path.read_bytes().isascii()]


def test_imports_follow_the_arrows() -> None:
    wrong: set[tuple[Path, str]] = set()
    for path in FLASHMETAL.rglob("*.py"):
        place = path.relative_to(FLASHMETAL).as_posix()
        parts = (names for part, names in FORBIDDEN.items() if f"{place}/".startswith(f"{part}/"))
        forbidden = {f"flashmetal.{name}" for name in chain(*parts)} | {"metalsim"}
        names = imported(path, FLASHMETAL)
        wrong |= {(path, n) for n in names for f in forbidden if f"{n}.".startswith(f"{f}.")}
    assert not wrong


def test_metalsim_does_not_know_flashmetal() -> None:
    names = {name for path in METALSIM.rglob("*.py") for name in imported(path, METALSIM)}
    assert "metalsim.errors" in names
    assert not [name for name in names if name.partition(".")[0] == "flashmetal"]


def test_imports_are_read_in_full() -> None:
    """The arrows above are judged on these names."""
    names = imported(FLASHMETAL / "integrations" / "transformers.py", FLASHMETAL)
    assert {"flashmetal.api", "torch", "typing"} <= names
    assert "flashmetal.engines" in imported(FLASHMETAL / "plan.py", FLASHMETAL)
