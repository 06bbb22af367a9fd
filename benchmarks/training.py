"""Forward and backward side by side in one run: flashmetal, SDPA under autograd, eager.

    python benchmarks/training.py [--cases NAME ...] [--repeats 9] [--results DIR]

Before a case is timed, everybody's gradients of the same call cut to CHECKED rows are held against
the float64 oracle. Repetitions are interleaved. Prints a table and writes training.json.
"""

from __future__ import annotations

from typing import Any

from cases import CAUSAL, NARROW, PACKED, Case, call
from report import options_of, summary, wait_passively, write_results
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flashmetal.plan import plan
from flashmetal.tools.bench.measure import Options, contest, interleaved

CHECKED = 512
_SECONDS_EACH = 20.0
_LEAST_REPEATS = 3
_EQUAL = {"sdpa": 0.9}
_BANDED = {"eager": 3.0}

CASES = (
    Case(call("full", 2048), "ViT, Whisper", targets=_EQUAL),
    Case(call("causal", 2048, **CAUSAL), "GPT-2", targets=_EQUAL),
    Case(call("causal, GQA", 2048, heads_k=2, **CAUSAL), "Llama 3.2 1B"),
    Case(call("window 128", 8192, heads_q=2, heads_k=2, **NARROW), "gpt-oss", targets=_BANDED),
    Case(call("varlen, 16 uneven", 1024, **PACKED), "BERT", targets=_BANDED),
    Case(call("softcap, causal", 2048, softcap=50.0, **CAUSAL), "Gemma 2"),
    Case(call("sinks, causal", 2048, sinks=True, **CAUSAL), "gpt-oss"),
    Case(call("ALiBi, causal", 2048, alibi=True, **CAUSAL), "BLOOM, MPT"),
    Case(call("additive bias", 2048, bias=True), "T5"),
)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check, then time: milliseconds and ratios by contestant. RuntimeError if one is wrong."""
    options = Options("cpu", case.rivals, training=True)
    checked = contest(case.workload.cut(CHECKED), options)
    for name, step in checked.calls.items():
        if not isinstance(step, str):
            verdict = checked.judge(step())
            if not verdict.right:
                raise RuntimeError(f"{name} is {verdict}")
    field = contest(case.workload, options)
    steps = {name: step for name, step in field.calls.items() if not isinstance(step, str)}
    interleaved(steps, 1)  # warm-up
    times = interleaved(steps, repeats, seconds=_SECONDS_EACH, least=_LEAST_REPEATS)
    chosen = plan(field.problem)
    return {**summary(case, times), "engine": chosen.engine, "backward": chosen.backward}


def main() -> None:
    """Measure, print, and write the results."""
    options = options_of("time forward and backward", repeats=9).parse_args()
    console = Console()
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    rows = [measure(case, options.repeats) for case in track(chosen, console=console)]
    table = Table("case", "engines", "flashmetal", "sdpa", "eager", title="forward + backward, ms")
    for row in rows:
        times = row["median_ms"]
        rivals = [
            f"{times[name]:.0f} ({row['speedups'][name]:.2f}x)" if name in times else ""
            for name in ("sdpa", "eager")
        ]
        engines = f"{row['engine']}, {row['backward']}"
        table.add_row(row["case"], engines, f"{times['flashmetal']:.0f}", *rivals)
    console.print(table)
    missed = [row["case"] for row in rows if not all(row["reached"].values())]
    if missed:
        console.print(f"[red]Target missed:[/red] {', '.join(missed)}")
    write_results(options.results, "training", {"training": rows})


if __name__ == "__main__":
    wait_passively()
    main()
