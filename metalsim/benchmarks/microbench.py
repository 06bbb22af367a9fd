"""What the simulator costs on this machine: fiber switches, collectives, a compile, attention.

    python metalsim/benchmarks/microbench.py [--output results/NAME.json] [--repeats 15]

Times are the best of several runs, since other processes only ever add to them. One switch is a
simdgroup barrier's time over its 32 lanes, on one OS thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import metalsim
from metalsim.compiler import find_compiler

SOURCE = Path(__file__).with_suffix(".metal").read_text()
TENSOR_SOURCE = Path(__file__).with_name("tensor_ops.metal").read_text()
ITERATIONS = 20_000


def best_seconds(run: Callable[[], None], repeats: int) -> float:
    """The shortest wall time of `run` after one run to warm up."""
    run()
    times = list[float]()
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


class Bench:
    """The kernels of microbench.metal and tensor_ops.metal, and how often to repeat them."""

    def __init__(self, repeats: int) -> None:
        self.library = metalsim.compile_shader(SOURCE)
        self.tensor_library = metalsim.compile_shader(TENSOR_SOURCE)
        self.repeats = repeats

    def operation(self, name: str, iterations: int = ITERATIONS, threads: int = 32) -> float:
        """Nanoseconds for one operation of kernel `name` by a threadgroup of `threads`."""
        library = self.tensor_library if name == "tensor_multiplies" else self.library
        kernel = getattr(library, name)
        out = torch.zeros(threads, dtype=torch.float32)

        def run(count: int) -> None:
            kernel(out, count, threads=threads, group_size=threads)

        with metalsim.schedule(workers=1):
            many = best_seconds(lambda: run(iterations), self.repeats)
            none = best_seconds(lambda: run(0), self.repeats)
        return (many - none) / iterations * 1e9

    def launch(self) -> float:
        """Nanoseconds to start and end one thread that does almost nothing."""
        threads = 1 << 18
        out = torch.zeros(threads, dtype=torch.float32)

        def run() -> None:
            self.library.launches(out, 1, threads=threads, group_size=256)

        with metalsim.schedule(workers=1):
            return best_seconds(run, self.repeats) / threads * 1e9

    def attention(self, workers: int, length: int = 1024) -> tuple[float, float]:
        """GFLOP/s (4 S S D H over the time) at B1 H2 D64 fp16; the error against float64."""
        heads, dim = 2, 64
        generator = torch.Generator().manual_seed(0)
        q, k, v = (torch.randn(1, heads, length, dim, generator=generator).half() for _ in "qkv")
        out = torch.empty_like(q)
        scale_log2 = dim**-0.5 / 0.6931471805599453
        grid = (length * 4, heads)

        def run() -> None:
            self.library.attention(
                q, k, v, out, length, scale_log2, threads=grid, group_size=(128, 1)
            )

        with metalsim.schedule(workers=workers):
            seconds = best_seconds(run, self.repeats)
        expected = torch.nn.functional.scaled_dot_product_attention(
            q.double(), k.double(), v.double()
        )
        error = (out.double() - expected).abs().max().item()
        return 4 * length * length * dim * heads / seconds / 1e9, error

    def measure(self) -> dict[str, float]:
        """Every figure by name."""
        barrier = self.operation("barriers")
        one, error = self.attention(workers=1)
        two, _ = self.attention(workers=2)
        return {
            "fiber_switch_ns": barrier / 32,
            "simdgroup_barrier_ns": barrier,
            "simd_sum_ns": self.operation("sums"),
            "simd_shuffle_ns": self.operation("shuffles"),
            "matrix_multiply_ns": self.operation("multiplies"),
            "tensor_multiply_16x32x16_ns": self.operation("tensor_multiplies"),
            "threadgroup_barrier_128_threads_ns": self.operation("group_barriers", 5_000, 128),
            "thread_launch_ns": self.launch(),
            "attention_gflops_1_worker": one,
            "attention_gflops_2_workers": two,
            "attention_largest_error": error,
            "cold_compile_s": min(cold_compile() for _ in range(3)),
        }


def cold_compile() -> float:
    """Seconds to compile all kernels into an empty cache, with the machine itself built before."""
    with tempfile.TemporaryDirectory() as cache:
        metalsim.compile_shader("kernel void warm() {}", cache_dir=cache)
        start = time.perf_counter()
        metalsim.compile_shader(SOURCE, cache_dir=cache)
        return time.perf_counter() - start


def machine_facts() -> dict[str, str | int]:
    """What the figures depend on."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = (line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
        model = next(names, model)
    command = [*find_compiler().command, "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {
        "processor": model,
        "cores": os.cpu_count() or 0,
        "system": platform.platform(),
        "compiler": version.splitlines()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure, print and, if asked, keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="a JSON file for the figures")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    facts, figures = machine_facts(), Bench(options.repeats).measure()
    for name, value in figures.items():
        print(f"{name:36} {value:12.4g}")
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(
            json.dumps({"machine": facts, "figures": figures}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
