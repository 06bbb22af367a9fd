"""NVIDIA's compute-sanitizer over a command that launches kernels, its reports by line of the
Metal source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

TOOLS = {
    "races": "racecheck",
    "bounds": "memcheck",
    "alignment": "memcheck",
    "divergence": "synccheck",
}
"""Which tool makes a check. It knows races of threadgroup memory alone, bounds of whole buffers and
of all threadgroup memory together, and nothing of uninitialised threadgroup memory."""

_KINDS = {"racecheck": "race", "memcheck": "bounds", "synccheck": "divergence"}
_OPTIONS = {"racecheck": ("--racecheck-report", "all")}
_PREFIX = "========="
_SIDE = re.compile(r"(?:(Write|Read) Thread|by thread) \((\d+),0,0\)(?: in block \((\d+),0,0\))?")
_PLACE = re.compile(r"\bat \w+\+0x[0-9a-f]+ in (.+):(\d+)")
_BLOCK = re.compile(r" at __shared__ 0x[0-9a-f]+ in block \((\d+),0,0\) :")
_SUMMARY = re.compile(r"(ERROR|RACECHECK) SUMMARY: ")
_TIMEOUT = 600
_TOOLKIT = "/usr/local/cuda"


class Side(NamedTuple):
    """An access or a barrier: where, and by which thread of which threadgroup, both counted with
    the first dimension running fastest. `access` is "read", "write" or "" where it is not said."""

    access: str
    file: str
    line: int
    thread: int
    threadgroup: int

    def __str__(self) -> str:
        what = f"{self.access} by " if self.access else ""
        place = f"{self.file}:{self.line}" if self.file else "unknown line"
        return f"{place}: {what}thread {self.thread} of threadgroup {self.threadgroup}"


class Hazard(NamedTuple):
    """What the tool reported, once for the same lines; `count` says how often."""

    kind: str
    """ "race", "bounds" (misaligned accesses too) or "divergence"."""
    message: str
    """In the tool's words."""
    sides: tuple[Side, ...]
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]

    def __str__(self) -> str:
        again = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.kind}: {self.message}{again}\n" + "\n".join(f"  {x}" for x in self.sides)


def sanitize(command: Sequence[str], checks: Collection[str] = tuple(TOOLS)) -> list[Hazard]:
    """Run `command` under each tool that `checks` (names of TOOLS) ask for.

    Raises RuntimeError without compute-sanitizer, and where the command fails for another reason.
    """
    program = _find()
    hazards = list[Hazard]()
    # Of torch's caching allocator the tool sees large blocks, not tensors.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in dict.fromkeys(TOOLS[check] for check in checks):
        options = ("--tool", tool, *_OPTIONS.get(tool, ()), "--print-limit", "10000")
        run = subprocess.run(
            [program, *options, *command],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=_TIMEOUT,
        )
        found = parse(tool, run.stdout)
        if not _SUMMARY.search(run.stdout) or (run.returncode and not found):
            raise RuntimeError(f"{program} {tool}: the launch failed:\n{run.stdout}{run.stderr}")
        hazards += found
    return hazards


def _find() -> str:
    toolkits = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [str(Path(path) / "bin") for path in (*toolkits, _TOOLKIT)]
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *places])
    found = shutil.which("compute-sanitizer", path=search)
    if found is None:
        raise RuntimeError(
            "metalsim check --engine cuda needs compute-sanitizer, which is a part of CUDA's "
            "toolkit: put it on the PATH or set CUDA_HOME"
        )
    return found


def parse(tool: str, output: str) -> list[Hazard]:
    """The hazards in the tool's output; warnings count, for a lost simdgroup_barrier is one."""
    merged = dict[tuple[object, ...], tuple[Hazard, set[tuple[Side, ...]]]]()
    for report in _reports(output):
        hazard = _read(_KINDS[tool], report)
        if hazard is None:
            continue
        key = (hazard.kind, hazard.message, *((x.access, x.file, x.line) for x in hazard.sides))
        merged.setdefault(key, (hazard, set()))[1].add(hazard.sides)
    return [hazard._replace(count=len(threads)) for hazard, threads in merged.values()]


def _reports(output: str) -> list[list[str]]:
    """The lines of each report, without the tool's mark; frames of the host left out."""
    reports, lines = list[list[str]](), list[str]()
    for line in (*output.splitlines(), _PREFIX):
        text = line.removeprefix(_PREFIX)
        if text.strip() and line.startswith(_PREFIX):
            if "Host Frame" not in text:
                lines.append(text)
        elif line.startswith(_PREFIX) and lines:
            reports.append(lines)
            lines = []
    return reports


def _read(kind: str, lines: Sequence[str]) -> Hazard | None:
    """One report; None for what is none, such as the summary."""
    head = next((line for line in lines if _is_head(line)), None)
    if head is None:
        return None
    message = head.strip().partition(": ")[2] if "hazard" in head else head.strip()
    block = _BLOCK.search(head)
    threadgroup = int(block[1]) if block else 0
    sides, place = list[Side](), ("", 0)
    for line in lines[lines.index(head) + 1 :]:
        if found := _PLACE.search(line):
            place = found[1], int(found[2])
        if who := _SIDE.search(line):
            group = int(who[3]) if who[3] else threadgroup
            sides.append(Side((who[1] or "").lower(), *place, _thread(int(who[2])), group))
            if place != ("", 0) and who[1]:
                place = ("", 0)
    return Hazard(kind, _BLOCK.sub("", message), tuple(sides), 1) if sides else None


def _is_head(line: str) -> bool:
    return "hazard detected" in line or line.startswith(
        (" Invalid ", " Barrier error", " Misaligned")
    )


def _thread(thread: int) -> int:
    """Metal's index of a thread of the block (lane_from_warp of backend_cuda.h)."""
    lane = thread % 32
    return thread - lane + (lane & 17 | (lane & 8) >> 1 | (lane & 4) >> 1 | (lane & 2) << 2)
