"""The options of ``flashmetal bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..arguments import count

RIVALS = ("eager", "sdpa", "flex")


def add_command(commands: Any, device: str) -> None:
    """Add ``bench`` to the subparsers of the command line."""
    bench = commands.add_parser("bench", help="time attention beside eager, SDPA, flex_attention")
    bench.add_argument("workloads", nargs="*", metavar="NAME", help="words in a workload's name")
    bench.add_argument("--list", action="store_true", help="the names of the workloads, no more")
    bench.add_argument("--training", action="store_true", help="forward and backward")
    bench.add_argument("--against", nargs="*", choices=RIVALS, default=list(RIVALS))
    bench.add_argument("--device", default=device, help="default: %(default)s")
    bench.add_argument("--seqlen", type=count, help="instead of the workload's")
    bench.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="the same")
    bench.add_argument("--repeats", type=count, default=15, help="most calls of each")
    bench.add_argument("--max-gb", type=float, default=4.0, help="most memory of scores or masks")
    bench.add_argument("--memory", type=count, nargs="+", default=[], metavar="SEQLEN")
    bench.add_argument("--csv", type=Path, metavar="FILE")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="a picture, such as .png or .svg")
    shape = bench.add_argument_group("a shape, where no workload is named")
    shape.add_argument("--batch", type=count, default=1)
    shape.add_argument("--heads", type=count, default=8)
    shape.add_argument("--kv-heads", type=count, help="default: as many as --heads")
    shape.add_argument("--head-dim", type=count, default=64)
    shape.add_argument("--causal", action="store_true")
    shape.add_argument("--window", type=int, nargs=2, default=(-1, -1), metavar=("LEFT", "RIGHT"))
    shape.add_argument("--softcap", type=float, default=0.0)
    shape.add_argument("--sinks", action="store_true")
    shape.add_argument("--alibi", action="store_true")
