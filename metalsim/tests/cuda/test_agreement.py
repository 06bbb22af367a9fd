"""The corpus of metalsim.fidelity on both engines: the same bits, but for the functions of <metal_math> and
the matrix unit's rounding."""

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


@pytest.mark.parametrize("launch", launches(), ids=lambda launch: launch.name)
def test_engines_agree(launch: Any, found: dict[str, list[Difference]]) -> None:
    for difference in found[launch.name]:
        print(difference)
        assert not difference.different
