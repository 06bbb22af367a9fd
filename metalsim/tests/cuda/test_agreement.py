"""The corpus of metalsim.fidelity on both engines: the same bits, but for functions of <metal_math>
and the matrix unit's rounding."""

from __future__ import annotations

from typing import Any

import pytest

import metalsim
from metalsim.fidelity.corpus import launches
from metalsim.fidelity.record import Difference, differences, make_record, record_metalsim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module")
def found() -> dict[str, list[Difference]]:
    """What differs, by launch."""

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source, engine="cuda")

    def to_device(array: Any) -> Any:
        return torch.from_numpy(array).cuda()

    record = make_record("cuda", compile_shader, to_device)
    assert not {name: each for name, each in record["results"].items() if "error" in each}
    by_launch: dict[str, list[Difference]] = {}
    for difference in differences(record, record_metalsim()):
        by_launch.setdefault(difference.launch, []).append(difference)
    return by_launch


# Metal's own limits for these functions, in units of the last place (its specification, table 8.2).
UNITS = {"functions:exponentials": 4, "functions:circular": 6, "functions:roots": 16}
# Nine terms, each cut at 24 bits below the largest.
UNITS["simdgroups:matrix_of_halves"] = 9
# NaN as half and as int, for which Metal promises nothing.
UNPROMISED = {"functions:conversions": 4}


@pytest.mark.parametrize("launch", launches(), ids=lambda launch: launch.name)
def test_engines_agree(launch: Any, found: dict[str, list[Difference]]) -> None:
    for difference in found[launch.name]:
        if launch.name in UNITS:
            assert difference.units <= UNITS[launch.name]
        else:
            assert difference.different <= UNPROMISED.get(launch.name, 0)
