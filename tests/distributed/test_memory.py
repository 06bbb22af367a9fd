"""What a rank holds falls as one over the ranks: counted, not timed."""

from __future__ import annotations

import time
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flashmetal import distributed

from .processes import Processes
from .spread import mesh

SEQLEN, HEADS, DIM = 1024, 4, 16


class Held(TorchDispatchMode):
    """The bytes of tensors that operations made: those that live, and the most that did at once."""

    def __init__(self, given: list[torch.Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known = {x.untyped_storage()._cdata for x in given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self._see(x.untyped_storage())
        return result

    def bytes_after(self, seconds: float) -> int:
        """Of what lives when threads of gloo had time to let go of their buffers."""
        time.sleep(seconds)
        return self.bytes

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.bytes -= size


def held(rank: int, method: str, size: int, heads_k: int) -> tuple[float, float]:
    """The most that a forward and backward held, and what the forward left, beside what was given.

    In units of this rank's rows of q, of which there are S / ranks.
    """
    del rank
    rows = SEQLEN // size
    shapes = [(1, rows, heads, DIM) for heads in (HEADS, heads_k, heads_k)]
    given = [torch.ones(shape, dtype=torch.bfloat16) for shape in shapes]
    leaves = [x.requires_grad_() for x in given]
    grad_o, unit = torch.ones_like(given[0]), given[0].nbytes
    with Held([*given, grad_o]) as mode:
        o = distributed.flash_attn_func(*leaves, causal=True, method=method, group=mesh(size))
        left = min(map(mode.bytes_after, [0.01] * 30))
        torch.autograd.grad(o, leaves, grad_o)
    return mode.peak / unit, left / unit


# In rows of q, beside what was given. The ring: o, lse, the gradient of q in float32 (2), those of
# one shard's keys and values (4), two shards (4), and what a call returned (3). Ulysses: o, lse,
# its heads of q, k, v, o and dO, and the gradients at the first three. A buffer that a thread of
# gloo has not let go of yet is one more.
MOST = {"ring": (15.2, 7.4), "ulysses": (10.2, 10.2)}
LEFT = {"ring": 1.2, "ulysses": 6.2}


@pytest.mark.parametrize("heads_k", [HEADS, 1])
@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_a_rank_holds_its_share(processes: Processes, method: str, heads_k: int) -> None:
    for size in (2, 4):
        for peak, left in processes.run(held, method, size, heads_k):
            assert 1 < peak <= MOST[method][heads_k == 1]
            assert left <= LEFT[method]
