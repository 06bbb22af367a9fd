"""What holds in every test: fixed seeds, one thread, and uninitialised memory that is NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible() -> Iterator[None]:
    """Seed torch, and let torch.empty give NaN, so that nothing unwritten passes for a result.

    One thread: the calls are small, and several test processes share the cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Deterministic mode fills what is allocated without a value (fill_uninitialized_memory).
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
