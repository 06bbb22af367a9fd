"""Records of the corpus: making one, reading it back, and the differences between two."""

from __future__ import annotations

import base64
import datetime
import importlib.metadata
import platform
import subprocess
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..library import compile_shader
from .corpus import Compile, ToDevice, launches


class Difference(NamedTuple):
    """Two results of one buffer. `units` is the largest distance in units of the last place, for
    floats; NaN equal NaN."""

    launch: str
    buffer: int
    different: int
    elements: int
    units: int


def record_metalsim() -> dict[str, Any]:
    """What metalsim gives on this machine."""
    return make_record("metalsim", compile_shader, lambda array: array)


def record_mac() -> dict[str, Any]:
    """What the GPU of this Mac gives, through torch.mps.compile_shader.

    Raises RuntimeError where torch finds no such GPU.
    """
    import torch

    if not torch.backends.mps.is_available():
        raise RuntimeError("metalsim.fidelity: torch finds no Apple GPU on this machine")

    def to_device(array: Any) -> Any:
        return torch.from_numpy(array).to("mps")

    return make_record("mps", torch.mps.compile_shader, to_device)


def make_record(device: str, compile_shader: Compile, to_device: ToDevice) -> dict[str, Any]:
    """Run the corpus. The record names the date, the machine, its system and the versions,
    and holds every array after its launch; a kernel that fails has its error instead."""
    results = dict[str, Any]()
    for launch in launches():
        try:
            arrays = launch.run(compile_shader, to_device)
        except Exception as error:  # a Mac that refuses one kernel still records the others
            results[launch.name] = {"digest": launch.digest, "error": str(error)}
            continue
        buffers = {str(slot): _pack(array) for slot, array in arrays.items()}
        results[launch.name] = {"digest": launch.digest, "buffers": buffers}
    return {"device": device, **_machine(), "results": results}


def differences(record: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """One for each buffer of the launches that both records hold, in the same form."""
    found = list[Difference]()
    for name, result in record["results"].items():
        counterpart = other["results"].get(name, {})
        if "error" in result or result["digest"] != counterpart.get("digest"):
            continue
        for slot, packed in result["buffers"].items():
            if slot in counterpart.get("buffers", {}):
                arrays = _unpack(packed), _unpack(counterpart["buffers"][slot])
                found.append(Difference(name, int(slot), *_distance(*arrays)))
    return found


def _distance(a: Any, b: Any) -> tuple[int, int, int]:
    different = ~((a == b) | ((a != a) & (b != b)))
    units = 0
    if a.dtype.kind == "f" and different.any():
        units = int(np.abs(_rank(a) - _rank(b))[different].max())
    return int(different.sum()), a.size, units


def _rank(array: Any) -> Any:
    """The place of each float in the order of all floats of its type; both zeros have place 0."""
    bits: Any = array.view(np.dtype(f"i{array.itemsize}")).astype(np.int64)
    sign = np.int64(1) << (8 * array.itemsize - 1)
    bits[bits < 0] = -(bits[bits < 0] + sign)
    return bits


def _machine() -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    return {
        "date": datetime.date.today().isoformat(),
        "chip": _chip(),
        "system": f"macOS {platform.mac_ver()[0]}" if platform.mac_ver()[0] else platform.system(),
        "metalsim": version("metalsim"),
        "torch": version("torch"),
    }


def _chip() -> str:
    if platform.system() != "Darwin":
        return platform.machine()
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _pack(array: Any) -> dict[str, Any]:
    content: Any = array.cpu().numpy() if hasattr(array, "cpu") else array
    data = base64.b64encode(zlib.compress(content.tobytes(), 9)).decode()
    return {"type": content.dtype.name, "shape": list(content.shape), "data": data}


def _unpack(packed: Mapping[str, Any]) -> Any:
    content = zlib.decompress(base64.b64decode(packed["data"]))
    array: Any = np.frombuffer(content, packed["type"])
    return array.reshape(packed["shape"])
