"""Writes docs/numbers.md and the README's table from the results files.

`python docs/scripts/write_numbers.py`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "numbers.md"
README = ROOT / "README.md"
HEAD = """# Numbers

**Nothing here was measured on Apple hardware.** Times are of CPUs and NVIDIA GPUs, counts are
simulated. Every table is made from a results file in the repository; its script, machine and commit
stand below it. "dirty" means that the tree had changes that were not committed. Compare the figures
of one run only with each other. `flashmetal bench` makes such tables on your machine
([tools](tools.md#bench)).
"""
Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], object]]


class Section(NamedTuple):
    """A table of one results file, left out where the file is not there.

    ``rows`` takes them out of the file, ``columns`` makes a cell's text, by the column's head.
    ``what`` says before the table what it shows, ``after`` follows it.
    """

    title: str
    name: str
    script: str
    what: str
    rows: Callable[[Row], Iterable[Row]]
    columns: Columns
    after: str = ""

    def text(self) -> str:
        """The section in markdown; what it says may name fields of the file in braces."""
        path = RESULTS / f"{self.name}.json"
        if not path.is_file():
            return ""
        results = json.loads(path.read_text())
        rows = [[cell(row) for cell in self.columns.values()] for row in self.rows(results)]
        parts = self.title and f"## {self.title}", self.what.format(**results)
        made = source(self.name, self.script, results)
        return "\n\n".join(filter(None, (*parts, table(self.columns, rows), self.after, made)))


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in markdown; all columns but the first to the right."""
    first, *others = ("| " + " | ".join(map(str, row)) + " |" for row in (head, *rows))
    return "\n".join([first, "| --- |" + " ---: |" * (first.count("|") - 2), *others])


def source(name: str, script: str, results: Row) -> str:
    """The line below a table: which script made it, on what, from which commit."""
    made = f"[`{name}.json`](../benchmarks/results/{name}.json)"
    made += f", made by [`{script}`](../benchmarks/{script})"
    machine = results.get("machine")
    if machine is None:
        return f"{made}; torch {results['torch']}. The file names neither machine nor commit."
    gpus = machine.get("gpus") or ([results["device"]] if "device" in results else [])
    device = ", ".join([*gpus, f"{machine['cpu']} with {machine['threads']} threads"])
    versions = f"torch {machine['torch']}, Python {machine['python']}"
    return f"{made}; {device}; {versions}; commit {machine['commit']}, {machine['date'][:10]}."


def figure(name: str, form: str = ".4g", unit: float = 1) -> Callable[[Row], str]:
    """A number of the row, formatted; "-" where the row has none."""
    return lambda row: format(row[name] / unit, form) if name in row else "-"


def median(contestant: str) -> Callable[[Row], str]:
    return lambda row: figure(contestant)(row["median_ms"])


def peaks(results: Row) -> Iterable[Row]:
    """A row by length."""
    found = results["peak_bytes_above_inputs"]
    lengths = next(iter(found.values()), {})
    return [{"S": s, **{name: points[s] for name, points in found.items()}} for s in lengths]


def launches(results: Row) -> Iterable[Row]:
    """A row by kernel that a case launches."""
    return [
        {**row, **launch, **launch["counters"], "launch": f"{row['case']}: {launch['kernel']}"}
        for row in results["rows"]
        for launch in row["launches"]
    ]


def long_calls(results: Row) -> Iterable[Row]:
    """The calls of 8192 rows by every kernel, which the pictures show for all models."""
    return [row for row in results["rows"] if row["workload"].startswith("causal 8192")]


def predicted(chip: str) -> Callable[[Row], str]:
    return lambda row: figure("milliseconds")(row["predicted"].get(chip, {}))


SHAPE: Columns = {name: itemgetter(name) for name in ("case", "shape", "engine")}
SECTIONS = (
    Section(
        "Forward on a CPU",
        "engines",
        "run.py",
        "Median milliseconds of a call. `sdpa` is `F.scaled_dot_product_attention`.",
        itemgetter("speed"),
        {**SHAPE, **{x: median(x) for x in ("flashmetal", "portable", "sdpa", "eager")}},
        "![Times over flashmetal's](../benchmarks/results/engines_speed.png)",
    ),
    Section(
        "Memory on a CPU",
        "engines",
        "run.py",
        "Peak MB of one forward call above its inputs, one head of 64 in float32.",
        peaks,
        {
            "S": itemgetter("S"),
            **{
                name: figure(name, ".1f", 1e6)
                for name in ("stock", "portable", "portable, window 128", "eager")
            },
        },
        "![Peak memory by length](../benchmarks/results/engines_memory.png)",
    ),
    Section(
        "Forward and backward on a CPU",
        "training",
        "training.py",
        "Median milliseconds of both together.",
        itemgetter("training"),
        {**SHAPE, **{x: median(x) for x in ("flashmetal", "sdpa", "eager")}},
    ),
    Section(
        "scaled_dot_product_attention, as it is and patched",
        "sdpa",
        "sdpa.py",
        "Median milliseconds on a CPU without and with `sdpa.install()`, and the rule that decided"
        " ([rules](sdpa.md#who-serves-a-call)).",
        itemgetter("sdpa"),
        {
            "case": itemgetter("case"),
            "rule": lambda row: row["verdict"]["rule"],
            "served by": lambda row: "flashmetal" if row["verdict"]["flashmetal"] else "PyTorch",
            "PyTorch": median("pytorch"),
            "installed": median("installed"),
            "speed-up": figure("speedup", ".2f"),
        },
    ),
    Section(
        "Formats of caches",
        "cache_formats",
        "cache_formats.py",
        "{model}, {tokens} tokens ([serving](serving.md#what-the-formats-cost)).",
        itemgetter("rows"),
        {
            "keys / values": lambda row: f"{row['keys']} / {row['values']}",
            "bytes a token": itemgetter("bytes_per_token"),
            "error": figure("relative_rms_error_mean", ".2%"),
            "divergence, nats": figure("next_token_divergence_nats", ".2g"),
            "same next token": figure("same_next_token", ".1%"),
        },
    ),
    Section(
        "Two NVIDIA GPUs",
        "distributed",
        "distributed.py",
        "Forward and backward of one causal call in bfloat16"
        " ([distributed](distributed.md#measured)).",
        itemgetter("rows"),
        {
            "attention": itemgetter("attention"),
            "S": itemgetter("seqlen"),
            "ranks": itemgetter("ranks"),
            "ms": figure("milliseconds"),
            "peak GB a rank": figure("peak_bytes", ".3g", 1e9),
        },
    ),
    Section(
        "The Metal kernels at full size",
        "nvidia_scale",
        "nvidia_scale.py",
        "The same Metal source, run by metalsim's CUDA engine. The error is the largest of sampled"
        " rows of the output against float64. These runs say nothing of time on a Mac.",
        itemgetter("cases"),
        {
            "case": itemgetter("case"),
            "error": figure("error", ".2g"),
            "torch's error": figure("torch_error", ".2g"),
            "MiB beyond inputs and outputs": figure("bytes", ".4g", 2**20),
        },
    ),
    Section(
        "What the Metal kernels do (simulated)",
        "kernel_counters",
        "kernel_counters.py",
        "Counted in metalsim: work, not time. The inputs of each case are in the file.",
        launches,
        {
            "case: kernel": itemgetter("launch"),
            "tiles of": itemgetter("gpu"),
            "threadgroup bytes": itemgetter("threadgroup_bytes"),
            "8x8 multiplies": itemgetter("matrix_multiplies"),
            "device bytes loaded": itemgetter("device_bytes_loaded"),
            "barriers": itemgetter("threadgroup_barriers"),
        },
    ),
    Section(
        "Tiles in real models (simulated, times predicted)",
        "kernels",
        "kernels.py",
        "Multiply-adds and device bytes over the least that a call needs, counted in metalsim, and"
        " milliseconds that its [time model](../metalsim/docs/time_model.md) predicts. 32 heads of"
        " 8192 causal rows; the pictures have all models. `plain` is a FlashAttention-2 kernel"
        " without what makes ours fast.",
        long_calls,
        {
            "call: kernel": lambda row: f"{row['workload']}: {row['kernel']}",
            "serves": lambda row: ", ".join(row["serves"]),
            "multiplies": figure("multiplies_over_least", ".2f"),
            "bytes": figure("device_bytes_over_least", ".1f"),
            **{chip: predicted(chip) for chip in ("M1 Max", "M3 Max", "M4", "M5 Max")},
        },
        "![Work over the least](../benchmarks/results/kernels_work.png)\n\n"
        "![Predicted times](../benchmarks/results/kernels_time.png)",
    ),
    Section(
        "metalsim's own speed",
        "check_cost",
        "check_cost.py",
        "What each check costs.",
        itemgetter("rows"),
        {
            "checks": itemgetter("mode"),
            "seconds": itemgetter("seconds"),
            "times fast": itemgetter("times_fast"),
        },
    ),
    Section(
        "",
        "simulated_speed",
        "simulated_speed.py",
        "Compiling a kernel, and running it without checks.",
        itemgetter("rows"),
        {
            "tiles of": itemgetter("tiles_for"),
            "seconds to compile": itemgetter("compile_seconds"),
            "GFLOP/s simulated": itemgetter("gflop_per_second"),
        },
    ),
)


def page() -> str:
    """The whole page."""
    return "\n\n".join([HEAD.strip(), *filter(None, (x.text() for x in SECTIONS))]) + "\n"


IN_README = {
    "full": "full, S 2048",
    "causal": "causal, S 4096",
    "window 128": "window 128 of 8192, causal",
    "varlen, 16 uneven": "varlen, 16 sequences of 8 to 1024, H 12",
    "softcap": "softcap, S 4096",
    "sinks": "sinks, S 4096",
    "ALiBi": "ALiBi, S 4096",
    "decode, batch 4": "decode, batch 4, H 32/8, 4096 keys, D 128",
}


def readme() -> str:
    """The README with its table as the latest results have it."""
    results = json.loads((RESULTS / "engines.json").read_text())
    rows = {row["case"]: row for row in results["speed"]}
    names = ("flashmetal", "sdpa", "eager")
    cells = [
        (label, *(median(x)(rows[case]) for x in names), rows[case]["engine"])
        for case, label in IN_README.items()
    ]
    stock, eager = (
        f"{results['peak_bytes_above_inputs'][x]['16384'] / 1e6:.4g} MB" for x in ("stock", "eager")
    )
    cells.append(("peak memory at S 16,384, H 1", stock, "", eager, "stock"))
    made = table(("", *names, "engine of flashmetal"), cells)
    found = r"^\|  \| flashmetal \|.*?(?=\n\n)"
    text, tables = re.subn(found, made, README.read_text(), flags=re.MULTILINE | re.DOTALL)
    if tables != 1:
        raise ValueError(f"README.md must have one table of times, it has {tables}")
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    README.write_text(readme())
