"""Holds metalsim.timing against attention timings that others published (published.txt).

Writes metalsim/docs/time_model.md. Nothing runs here but arithmetic: the work of each kernel comes
from what its authors say of it.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import NamedTuple

from metalsim.timing import Prediction, Work, chip, predict

TABLE = Path(__file__).parent / "published.txt"
PAGE = Path(__file__).parent.parent / "docs" / "time_model.md"
_WORKING_REGISTERS = 24
_LANES = 32
_DECODE_L1 = 48
"""Bytes a cycle and core of the 64 that loops over keys reach, in which all waits for each load:
fitted on the two rows of mlx#4380."""


class Row(NamedTuple):
    """One published timing, in the columns of published.txt."""

    chip: str
    implementation: str
    design: str
    element_bytes: int
    batch: int
    heads: int
    heads_k: int
    queries: int
    keys: int
    head_dim: int
    causal: bool
    rows: int
    block_k: int
    simdgroups: int
    query_reads: int
    extra_bytes: float
    threadgroup_bytes: int
    fenced: bool
    fitted: bool
    milliseconds: float
    derived: bool
    source: str

    @property
    def shape(self) -> str:
        sizes = f"{self.batch}x{self.heads}/{self.heads_k}x{self.queries}x{self.keys}"
        return f"{sizes} D{self.head_dim}{' causal' if self.causal else ''}"

    def error(self) -> float:
        """Of the prediction, as a fraction of the published time."""
        return predicted(self).seconds * 1e3 / self.milliseconds - 1


def read_rows() -> list[Row]:
    """Every row of published.txt."""
    lines = TABLE.read_text(encoding="ascii").splitlines()
    return [_row(line.split()) for line in lines if line and not line.startswith("#")]


def _row(words: list[str]) -> Row:
    return Row(
        chip=words[0],
        implementation=words[1],
        design=words[2],
        element_bytes=int(words[3]) // 8,
        batch=int(words[4]),
        heads=int(words[5]),
        heads_k=int(words[6]),
        queries=int(words[7]),
        keys=int(words[8]),
        head_dim=int(words[9]),
        causal=words[10] == "1",
        rows=int(words[11]),
        block_k=int(words[12]),
        simdgroups=int(words[13]),
        query_reads=int(words[14]),
        extra_bytes=float(words[15]),
        threadgroup_bytes=int(words[16]),
        fenced=words[17] == "1",
        fitted=words[18] == "1",
        milliseconds=float(words[19].rstrip("d")),
        derived=words[19].endswith("d"),
        source=words[20],
    )


def predicted(row: Row) -> Prediction:
    """The model's answer for a row."""
    work = decode_work(row) if row.design == "decode" else tile_work(row)
    return predict(work, chip(row.chip))


def tile_work(row: Row) -> Work:
    """A forward kernel that goes over the keys in blocks, by quantities a score.

    An operand element is loaded 2 D / rows times a score, plus D / block_k for a Q that is read
    again; 5 instructions a score are the softmax's, D / block_k rescale O, and half an instruction
    an element converts staged 16-bit operands to float.
    """
    block_q, dim = row.rows * row.simdgroups, row.head_dim
    scores = float(row.batch * row.heads * row.queries * row.keys)
    if row.causal:
        scores *= 1 - (row.queries / row.keys) / 2 * (1 - (block_q + row.block_k) / row.queries)
    elements = 2 * dim / row.rows + row.query_reads * dim / row.block_k
    staged, narrow = row.design == "steel", row.element_bytes == 2
    shared = row.element_bytes * 2 * dim / block_q
    arithmetic = 5 + dim / row.block_k + (0.5 * elements if staged and narrow else 0)
    on_tensors = row.design == "nax"
    return Work(
        threadgroups=row.batch * row.heads * -(-row.queries // block_q),
        simdgroups=row.simdgroups,
        matrix_multiply_adds=0 if on_tensors else scores * 2 * dim,
        tensor_multiply_adds=scores * 2 * dim if on_tensors else 0,
        issue_cycles=scores * arithmetic / _LANES,
        exponentials=scores * (1 + 1 / row.block_k),
        l1_bytes=scores
        * (row.element_bytes * elements + (shared if staged else 0) + row.extra_bytes),
        l2_bytes=scores * shared,
        dram_bytes=_unique_bytes(row),
        threadgroup_bytes=row.threadgroup_bytes,
        registers=row.rows * (dim + row.block_k) // _LANES + _WORKING_REGISTERS,
        # A fragment of K serves one product, one load of Q all those of the block; V's serve one.
        multiplies_a_load=2 / (8 / row.block_k + 1) if row.fenced else math.inf,
    )


def decode_work(row: Row) -> Work:
    """One simdgroup a query head and key: each lane has D / 32 elements of Q, K, V and O.

    The 8 KB of L1 on Apple7 and 8 hold no keys for the next head: each head fetches its own.

    Instructions a key: D / 32 each for the dot product, the rescaling and the sum, a simd_sum of
    14.5 cycles, two loads, and six for the maximum, the sum, comparison and addresses.
    """
    pairs = float(row.batch * row.heads * row.queries * row.keys)
    unique, family = _unique_bytes(row), chip(row.chip).family
    loaded = pairs * 2 * row.head_dim * row.element_bytes
    return Work(
        threadgroups=max(row.batch * row.heads * row.queries * row.keys // 256, 1),
        simdgroups=1,
        issue_cycles=pairs * (3 * row.head_dim / _LANES + 14.5 + 2 + 6),
        exponentials=pairs * 2 * _LANES,
        l1_bytes=loaded * family.l1_bytes / _DECODE_L1,
        l2_bytes=loaded if family.number <= 8 else unique,
        dram_bytes=unique,
        registers=4 * row.head_dim // _LANES + _WORKING_REGISTERS,
        launches=2,
    )


def _unique_bytes(row: Row) -> float:
    rows = 2 * row.heads * row.queries + 2 * row.heads_k * row.keys
    return float(row.batch * rows * row.head_dim * row.element_bytes)


def summary(rows: list[Row]) -> str:
    """The errors of `rows` in one sentence."""
    errors = [abs(row.error()) for row in rows]
    worst = max(rows, key=lambda row: abs(row.error()))
    within = sum(error <= 0.25 for error in errors)
    return (
        f"median error {statistics.median(errors):.0%}, worst {worst.error():+.0%} "
        f"({worst.chip} {worst.implementation} {worst.shape}), {within} of {len(rows)} within 25%"
    )


def page() -> str:
    """docs/time_model.md."""
    rows = read_rows()
    free = [row for row in rows if not row.fitted]
    tiles = [row for row in free if row.design != "decode"]
    decodes = [row for row in free if row.design == "decode"]
    text = (Path(__file__).parent / "time_model_page.md").read_text(encoding="ascii")
    table = "\n".join(_line(row) for row in rows)
    long = [row for row in free if row.milliseconds >= 0.5]
    facts = {
        "ALL": summary(free),
        "TILES": summary(tiles),
        "DECODE": summary(decodes),
        "LONG": summary(long),
    }
    for name, value in {**facts, "TABLE": table}.items():
        text = text.replace(f"@{name}@", value)
    return text


def _line(row: Row) -> str:
    prediction = predicted(row)
    cells = (
        row.chip,
        row.implementation.replace("-", " "),
        f"{row.element_bytes * 8} bit",
        row.shape,
        f"{row.milliseconds:g}{' (derived)' if row.derived else ''}",
        f"{prediction.seconds * 1e3:.3g}",
        f"{row.error():+.0%}",
        prediction.limit,
        "yes" if row.fitted else "",
        row.source,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="ascii")
    print(summary(read_rows()))
