"""The order in which threads run must not show, and the checkers find nothing: every kernel of the
package and of metalsim's gallery, under eight schedules."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import pytest
import torch
from torch import Tensor

import metalsim
from flashmetal.engines.metal import msl

from .launches import GALLERY, GALLERY_LAUNCHES, LAUNCHES, GalleryLaunch, Idle, Launch
from .simulated import checked

MATRIX: dict[str, Launch | GalleryLaunch] = {
    **LAUNCHES,
    **{f"gallery, {launch.kernel}": launch for launch in GALLERY_LAUNCHES},
}
SEEDS = range(8)


class Named:
    """A library that notes the names of the kernels asked for, which do nothing."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def __getattr__(self, name: str) -> Any:
        self._names.add(name)
        return getattr(Idle(), name)


def bits(tensor: Tensor) -> Tensor:
    """The bytes, so that NaN compare too."""
    return tensor.detach().contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", MATRIX)
def test_equal_bits_and_no_findings_under_eight_schedules(name: str) -> None:
    expected: tuple[Tensor, ...] = ()
    for seed in SEEDS:
        with metalsim.schedule(seed=seed):
            results = MATRIX[name].run(checked)
        expected = expected or results
        assert results
        for result, first in zip(results, expected, strict=True):
            assert torch.equal(bits(result), bits(first)), f"seed {seed} differs"


def test_every_kernel_is_in_the_matrix() -> None:
    kernel = re.compile(r"^(?:\[\[)?kernel\b.*\bvoid (\w+)\(", re.M)
    files = [path for path in resources.files(msl).iterdir() if path.name.endswith(".metal")]
    written = {
        name
        for path in (*files, *GALLERY.glob("*.metal"))
        for name in kernel.findall(path.read_text())
    }
    launched = set[str]()
    for launch in MATRIX.values():
        launch.run(lambda source: Named(launched))
    assert launched == written
