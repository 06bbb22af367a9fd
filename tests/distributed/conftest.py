"""Four processes, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    ranks = Processes(4, tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The calls are small, and several processes share the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
