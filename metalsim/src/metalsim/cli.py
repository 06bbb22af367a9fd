"""The command line: `metalsim run`, `check` and `profile`, which need numpy (the extra `cli`), and
`lint`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .checks import CHECKS, Check
from .errors import PROGRAM_SOURCE, ArgumentError, SimulationError
from .findings import collect_findings
from .grid import read_grid
from .include_path import add_include_option
from .library import Kernel, compile_shader
from .linter.command import add_lint, lint_files
from .profile_report import lines_table, prediction_table, totals_table
from .quoted_lines import line_of, line_of_file, quote_errors, quote_finding
from .schedule import schedule
from .timing import Chip, Prediction, chip, predict, work_of_counters

if TYPE_CHECKING:
    from .buffer_files import Buffer
    from .frontend import FunctionConstant
    from .lines import Location


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with `arguments` (default: those of the process).

    Returns the exit status: 1 for a kernel that does not compile, does something wrong or gives an
    unexpected result, 2 for a command that cannot be carried out.
    """
    options = _parser().parse_args(arguments)
    if options.command == "lint":
        return lint_files(options)
    path: Path = options.source
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return _complain(f"{path}: {error}")
    try:
        return _COMMANDS[options.command](options, source)
    except SyntaxError as error:
        print(quote_errors(error.msg, path, source), file=sys.stderr)
        return 1
    except SimulationError as error:
        print(
            quote_finding(error, options.kernel, str(path), source),
            file=sys.stderr,
        )
        return 1
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        return _complain("this needs numpy: pip install 'metalsim[cli]'")
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        return _complain(str(error))


def _complain(message: str) -> int:
    print(f"metalsim: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("metalsim", description="Runs Metal kernels on the CPU.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="launch a kernel of a .metal file once")
    _add_launch(run)
    run.add_argument("--check", action="store_true", help="look for bad accesses (slower)")
    _add_engine(run, "where it runs: the CPU, or an NVIDIA GPU")
    run.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write the buffers here, as buffer0.npy"
    )
    run.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="SLOT=FILE.npy",
        help="fail unless this buffer is as in the file; may be repeated",
    )
    run.add_argument("--rtol", type=float, default=1e-5, help="for --expect, default %(default)s")
    run.add_argument("--atol", type=float, default=1e-6, help="for --expect, default %(default)s")
    check = commands.add_parser(
        "check", help="launch a kernel and list its races and bad accesses; status 1 if it has any"
    )
    _add_engine(check, "whose checks: metalsim's own, or compute-sanitizer's on an NVIDIA GPU")
    _add_launch(check)
    check.add_argument(
        "--only",
        metavar="NAMES",
        help=f"these checks alone, separated by commas: {', '.join(CHECKS)}",
    )
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")
    profile = commands.add_parser("profile", help="launch a kernel and count its work")
    _add_launch(profile)
    profile.add_argument("--by-line", action="store_true", help="also by line of the source")
    profile.add_argument(
        "--chip",
        metavar="NAME",
        help="also predict the time on an Apple GPU, such as M1 or M4-Max: to rank variants, "
        "see docs/time_model.md for its errors",
    )
    profile.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_lint(commands.add_parser("lint", help="what Apple's compiler would refuse of .metal files"))
    return parser


def _add_engine(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--engine", choices=("cpu", "cuda"), default="cpu", help=text)


def _add_launch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FILE.metal")
    parser.add_argument("--kernel", metavar="NAME", help="default: the only one in the file")
    parser.add_argument(
        "--buffers",
        nargs="+",
        default=[],
        metavar="BUFFER",
        help="what goes to buffer slots 0, 1, ...: a.npy, 3, 0.5, uint32:64, zeros:float32:64x64, "
        "random:float16:1000, a.npy:float16",
    )
    parser.add_argument("--threads", nargs="+", type=int, metavar="N", help="the grid in threads")
    parser.add_argument("--group", nargs="+", type=int, metavar="N", help="threads of a group")
    parser.add_argument("--seed", type=int, help="order the threads at random, from this seed")
    parser.add_argument(
        "--constant", action="append", default=[], metavar="NAME=VALUE", help="a function constant"
    )
    add_include_option(parser)


def _run(options: argparse.Namespace, source: str) -> int:
    kernel, buffers = _launch(options, source, True if options.check else None)
    arrays = {buffer.slot: buffer for buffer in buffers if buffer.before is not None}
    expected = dict(_expectation(word, arrays) for word in options.expect)
    for slot, buffer in arrays.items():
        if slot in kernel.writable_buffers:
            print(buffer.summary())
            if options.output_dir is not None:
                options.output_dir.mkdir(parents=True, exist_ok=True)
                print(f"buffer {slot}: written to {buffer.save(options.output_dir)}")
    failures = 0
    for slot, path in expected.items():
        difference = arrays[slot].difference(path, options.rtol, options.atol)
        print(f"buffer {slot}: {difference or f'agrees with {path}'}")
        failures += difference is not None
    return 1 if failures else 0


def _expectation(word: str, arrays: dict[int, Buffer]) -> tuple[int, Path]:
    slot, separator, path = word.partition("=")
    if not separator or not slot.isdigit() or int(slot) not in arrays:
        raise ArgumentError(
            f"--expect {word}: expected SLOT=FILE.npy, SLOT one of the arrays: {list(arrays)}"
        )
    return int(slot), Path(path)


def _check(options: argparse.Namespace, source: str) -> int:
    from .finding_report import Report

    if options.engine == "cuda":
        return _check_on_gpu(options, source)
    check = True if options.only is None else options.only
    with collect_findings() as findings:
        kernel, _ = _launch(options, source, check)
    report = Report(options.source, source, kernel.name, findings)
    if options.json:
        print(report.json())
    else:
        report.show()
    return 1 if findings else 0


def _check_on_gpu(options: argparse.Namespace, source: str) -> int:
    from .cuda.sanitizer import TOOLS, sanitize

    checks = list(TOOLS) if options.only is None else options.only.split(",")
    if unknown := [name for name in checks if name not in TOOLS]:
        raise ValueError(f"--only {unknown[0]}: on a GPU there are {', '.join(TOOLS)}")
    kernel = _kernel(options, source, None)
    hazards = sanitize([sys.executable, "-m", "metalsim", *_run_words(options)], checks)
    if options.json:
        found = [{**x._asdict(), "sides": [y._asdict() for y in x.sides]} for x in hazards]
        record = {"file": str(options.source), "kernel": kernel.name, "findings": found}
        print(json.dumps(record, indent=2))
    else:
        amount = f"{len(hazards) or 'no'} finding{'' if len(hazards) == 1 else 's'}"
        print(f"{options.source}: kernel {kernel.name}: {amount}")
        for hazard in hazards:
            print(str(hazard).replace(f"{PROGRAM_SOURCE}:", f"{options.source}:"))
    return 1 if hazards else 0


def _run_words(options: argparse.Namespace) -> list[str]:
    """The same launch as a command of its own."""
    words = ["run", str(options.source), "--engine", "cuda", "--kernel", options.kernel]
    for name in ("buffers", "threads", "group"):
        if values := getattr(options, name):
            words += [f"--{name}", *map(str, values)]
    for value in options.constant:
        words += ["--constant", value]
    for directory in options.include:
        words += ["-I", directory]
    return words


def _profile(options: argparse.Namespace, source: str) -> int:
    wanted = chip(options.chip) if options.chip else None
    kernel, buffers = _launch(options, source, False, profile=True)
    counters = {
        **kernel.counters,
        "threadgroup_memory_bytes": kernel.static_thread_group_memory_length,
    }
    prediction = _prediction(options, kernel, buffers, wanted) if wanted else None
    if options.json:
        print(json.dumps(_profile_record(options, kernel, counters, prediction), indent=2))
        return 0
    print(f"{kernel.name}: one launch")
    print(totals_table(counters))
    if wanted is not None and prediction is not None:
        print(f"\n{prediction_table(prediction, wanted.name)}")
    if options.by_line:
        print(
            f"\n{lines_table(kernel.line_counters, lambda at: _source_line(at, options, source))}"
        )
    return 0


def _profile_record(
    options: argparse.Namespace,
    kernel: Kernel,
    counters: dict[str, int],
    prediction: Prediction | None,
) -> dict[str, object]:
    lines = [
        {**(location._asdict() if location else {"file": "", "line": 0}), "counters": counts}
        for location, counts in kernel.line_counters
    ]
    grid = {"threads": options.threads, "group": options.group}
    predicted = {"predicted": prediction._asdict()} if prediction else {}
    named = {"kernel": kernel.name, **grid}
    return {**named, "counters": counters, "lines": lines, **predicted}


def _prediction(
    options: argparse.Namespace, kernel: Kernel, buffers: list[Buffer], wanted: Chip
) -> Prediction:
    values = [buffer.value for buffer in buffers]
    limit = kernel.max_threads_per_threadgroup
    required = kernel.required_threads_per_threadgroup
    grid = read_grid(kernel.name, values, options.threads, options.group, limit, required)
    work = work_of_counters(
        kernel.counters,
        grid.threads,
        grid.group,
        threadgroup_bytes=kernel.static_thread_group_memory_length,
        dram_bytes=sum(value.nbytes for value in values if hasattr(value, "nbytes")),
    )
    return predict(work, wanted)


def _source_line(location: Location, options: argparse.Namespace, source: str) -> str:
    if location.file == PROGRAM_SOURCE:
        return line_of(source, location.line)
    directories = [options.source.parent, *map(Path, options.include)]
    found = (line_of_file(folder / location.file, location.line) for folder in directories)
    return next((text for text in found if text), "")


def _launch(
    options: argparse.Namespace, source: str, check: Check, profile: bool = False
) -> tuple[Kernel, list[Buffer]]:
    from .buffer_files import read_buffer

    buffers = [read_buffer(slot, word) for slot, word in enumerate(options.buffers)]
    kernel = _kernel(options, source, check, profile)
    with schedule(seed=options.seed):
        kernel(
            *(buffer.value for buffer in buffers),
            threads=options.threads,
            group_size=options.group,
        )
    return kernel, buffers


def _kernel(
    options: argparse.Namespace, source: str, check: Check, profile: bool = False
) -> Kernel:
    library = compile_shader(
        source,
        engine=getattr(options, "engine", "cpu"),
        check=check,
        profile=profile,
        function_constants=dict(map(_constant, options.constant)),
        include_dirs=[options.source.parent, *options.include],
    )
    names = dir(library)
    if options.kernel is None and len(names) != 1:
        raise ArgumentError(f"{options.source}: choose with --kernel: {', '.join(names) or 'none'}")
    options.kernel = options.kernel or names[0]
    return getattr(library, options.kernel)


_COMMANDS = {"run": _run, "check": _check, "profile": _profile}


def _constant(word: str) -> tuple[str, FunctionConstant]:
    name, separator, text = word.partition("=")
    words: dict[str, bool] = {"true": True, "false": False}
    if text in words:
        return name, words[text]
    try:
        return name, int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        given = "" if separator else " (there is no =)"
        raise ArgumentError(
            f"--constant {word}: expected NAME=VALUE, the value a number, true or false{given}"
        ) from None
