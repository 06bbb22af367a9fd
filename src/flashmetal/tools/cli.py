"""The command line, ``flashmetal``; needs the extra ``cli``."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import torch

from ..checks import KERNELS
from ..engines.metal.gpu import Gpu
from ..explain import tiles_of
from ..plan import ENGINES, Plan, plan
from ..problem import AttentionProblem
from ..request import AttentionInputs, make_request
from . import trace_report, tune_command
from .arguments import count
from .bench.options import add_command as add_bench

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with ``arguments`` (default: those of the process); the exit status."""
    options = _parser().parse_args(arguments)
    if find_spec("rich") is None:
        print("flashmetal: this needs rich: pip install 'flashmetal[cli]'", file=sys.stderr)
        return 1
    if options.command == "trace":
        return trace_report.run(options)
    if options.command == "bench":
        from .bench import command

        return command.run(options)
    if options.command == "tune":
        return tune_command.run(options)
    if options.command == "verify":
        return _verify(options)
    return _doctor() if options.command == "doctor" else _explain(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("flashmetal", description="Flash attention on Apple GPUs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="what this machine can run, and why not the rest")
    explain = commands.add_parser("explain", help="which engine serves a call, and why")
    explain.add_argument("--batch", type=count, default=1)
    explain.add_argument("--seqlen", type=count, default=4096, help="queries")
    explain.add_argument("--seqlen-k", type=count, help="keys; default: as many as queries")
    explain.add_argument("--heads", type=count, default=8)
    explain.add_argument("--kv-heads", type=count, help="default: as many as --heads")
    explain.add_argument("--head-dim", type=count, default=64)
    explain.add_argument("--dtype", choices=_DTYPES, default="float16")
    explain.add_argument("--device", default=_device(), help="default: %(default)s")
    explain.add_argument("--causal", action="store_true")
    explain.add_argument("--window", type=int, nargs=2, default=(-1, -1), metavar=("LEFT", "RIGHT"))
    explain.add_argument("--softcap", type=float, default=0.0)
    explain.add_argument("--sinks", action="store_true")
    explain.add_argument("--alibi", action="store_true")
    explain.add_argument("--grad", action="store_true", help="an input needs gradients")
    explain.add_argument("--impl", choices=("auto", *ENGINES), default="auto")
    trace_report.add_command(commands)
    add_bench(commands, _device())
    tune_command.add_command(commands, _device())
    verify = commands.add_parser("verify", help="the Metal kernels against the reference")
    verify.add_argument("--full", action="store_true", help="every feature and head dim")
    verify.add_argument(
        "--kernel", choices=(*KERNELS, "append"), action="append", help="default: all"
    )
    verify.add_argument("--dtype", choices=_DTYPES, action="append", help="default: all")
    verify.add_argument("--device", default=_device(), help="default: %(default)s")
    verify.add_argument(
        "--output-dir", type=Path, help="where the results go as JSON; --full: this folder"
    )
    return parser


def _verify(options: argparse.Namespace) -> int:
    from .verify import VERIFIED, verify

    kernels, dtypes = options.kernel or VERIFIED, options.dtype or _DTYPES
    folder: Path | None = options.output_dir or (Path() if options.full else None)
    return verify(options.device, tuple(kernels), tuple(dtypes), options.full, folder)


def _device() -> str:
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _problem(options: argparse.Namespace) -> AttentionProblem:
    """The problem of the options, checked on tensors without memory."""
    dtype, heads_q, head_dim = _DTYPES[options.dtype], options.heads, options.head_dim
    heads_k = heads_q if options.kv_heads is None else options.kv_heads
    seqlen_k = options.seqlen if options.seqlen_k is None else options.seqlen_k
    q = torch.empty(options.batch, options.seqlen, heads_q, head_dim, dtype=dtype, device="meta")
    k = torch.empty(options.batch, seqlen_k, heads_k, head_dim, dtype=dtype, device="meta")
    per_head = torch.empty(heads_q, device="meta")
    inputs = AttentionInputs(
        q,
        k,
        k,
        alibi_slopes=per_head if options.alibi else None,
        sinks=per_head if options.sinks else None,
    )
    request = make_request(
        function="flashmetal explain",
        dropout_p=0.0,
        scale=None,
        causal=options.causal,
        window_size=tuple(options.window),
        softcap=options.softcap,
        impl="auto",
        kernel=None,
    )
    problem = AttentionProblem.of(inputs, request)
    return problem._replace(device=options.device, needs_grad=options.grad)


def _explain(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    try:
        problem = _problem(options)
        chosen = plan(problem, options.impl)
    except (NotImplementedError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    table = Table("engine", "", "why")
    for engine, word, why in _rows(chosen):
        table.add_row(engine, word, why)
    for tile in tiles_of(problem, chosen):
        table.add_row("", "tile", tile.removeprefix("tile of "))
    Console().print(table)
    return 0


def _rows(chosen: Plan) -> list[tuple[str, str, str]]:
    refused = [(engine, "[red]no[/]", reason) for engine, reason in chosen.refusals]
    gradients = [(chosen.backward, "[green]gradients[/]", "")] if chosen.backward else []
    return [(chosen.engine, "[green]serves[/]", chosen.why), *gradients, *refused]


def _doctor() -> int:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    machine = Table("machine", "", show_header=False)
    machine.add_row("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    machine.add_row("Python", platform.python_version())
    machine.add_row("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads")
    machine.add_row("Apple GPU", _apple_gpu())
    machine.add_row("transformers", _installed("transformers"))
    console.print(machine)
    device = _device()
    problem = _problem(_parser().parse_args(["explain", "--device", device]))
    engines = Table(f"engine, {device} tensors", "runs", "why")
    for engine in ENGINES:
        try:
            plan(problem, engine)
        except NotImplementedError as error:
            engines.add_row(engine, "[red]no[/]", str(error).partition("serve this call: ")[2])
        else:
            engines.add_row(engine, "[green]yes[/]", "")
    console.print(engines)
    chosen = plan(problem)
    console.print(f'impl="auto" takes {chosen.engine} for a plain call: {chosen.why}')
    backward = plan(problem._replace(needs_grad=True)).backward
    console.print(f"Its gradients come from {backward}.")
    return 0


def _apple_gpu() -> str:
    try:
        gpu = Gpu.current()
    except RuntimeError as error:
        return f"none: {error}"
    return f"{gpu.name}, family {gpu.family}, {gpu.cores} cores"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"not installed: pip install 'flashmetal[{package}]'"


if __name__ == "__main__":
    sys.exit(main())
