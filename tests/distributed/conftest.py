"""Four processes, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .processes import Processes


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    ranks = Processes(4, tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()
