"""Sending tensors between the ranks of a group, over whatever backend it has.

No backend is imported here: gloo, NCCL, or one that a package registers (as ``mccl`` does for Apple
GPUs) serves if the group was made with it. Where the backend does not move tensors of their device,
as gloo with Apple GPUs, they go through the CPU.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

Group: TypeAlias = "dist.ProcessGroup | DeviceMesh | None"


class Ranks:
    """The ranks of a group, seen from this process's own.

    ``size`` and ``rank`` are of the group. All methods are collective: every rank calls them.
    """

    def __init__(self, function: str, group: Group) -> None:
        self._function = function
        self._group = _process_group(function, group)
        self.size = dist.get_world_size(self._group)
        self.rank = dist.get_rank(self._group)

    def shift(self, tensors: list[Tensor], like: list[Tensor], by: int) -> Shift:
        """Start sending contiguous tensors ``by`` ranks on, and receiving as many into ``like``."""
        return Shift(self._function, self._group, tensors, like, (self.rank, self.size, by))

    def all_to_all(self, sent: Tensor, sizes: list[int], coming: list[int]) -> list[Tensor]:
        """What every rank sends to this one, as flat views of one tensor.

        ``sent`` is flat: ``sizes[i]`` elements for rank i, one after the other; ``coming[i]`` come
        from rank i.
        """
        carried = _on_carrier(sent, self._group)
        received = carried.new_empty(sum(coming))
        with _answers(self._function, "another rank"):
            dist.all_to_all_single(received, carried, coming, sizes, group=self._group)
        return list(torch.split(received.to(sent.device), coming))


class Shift:
    """Tensors on their way to another rank, and others on their way here."""

    def __init__(
        self,
        function: str,
        group: dist.ProcessGroup,
        tensors: list[Tensor],
        like: list[Tensor],
        place: tuple[int, int, int],
    ) -> None:
        rank, size, by = place
        to, self._source = (rank + by) % size, (rank - by) % size
        self._function, self._like = function, like
        # The buffers of both sides live until the transfer is over.
        self._sent = [_on_carrier(x, group) for x in tensors]
        self._received = [_on_carrier(x, group) for x in like]
        operations = [
            dist.P2POp(operation, x, group=group, group_peer=peer)
            for operation, xs, peer in (
                (dist.isend, self._sent, to),
                (dist.irecv, self._received, self._source),
            )
            for x in xs
            if x.numel()
        ]
        peers = " and ".join(f"rank {peer}" for peer in sorted({to, self._source}))
        with _answers(function, peers):
            self._works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> list[Tensor]:
        """The tensors that came, ``like`` filled."""
        with _answers(self._function, f"rank {self._source}"):
            for work in self._works:
                work.wait()
        for x, received in zip(self._like, self._received, strict=True):
            if x is not received:
                x.copy_(received)
        return self._like


def members(function: str, group: Group) -> tuple[int, int]:
    """How many ranks a group has, and which of them this process is."""
    ranks = Ranks(function, group)
    return ranks.size, ranks.rank


def _process_group(function: str, group: Group) -> dist.ProcessGroup:
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"{function}: group must be a mesh of one dimension, got {group.ndim}; pick the "
                'one that the sequence is spread over, as mesh["cp"]'
            )
        return group.get_group()
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            f"{function}: there is no process group; call torch.distributed.init_process_group "
            "first, as under torchrun"
        )
    if group is None:
        group = dist.group.WORLD
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"{function}: group must be a ProcessGroup of which this process is a member, a "
            f"DeviceMesh or None, got {type(group).__name__}"
        )
    return group


def _on_carrier(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """``x`` itself, or a copy on the CPU where the group's backend does not read its device."""
    if x.device.type == "cpu":
        return x
    backends = dict(pair.split(":") for pair in dist.get_backend_config(group).split(","))
    return x.cpu() if backends.get(x.device.type, "gloo") == "gloo" else x


@contextmanager
def _answers(function: str, peers: str) -> Generator[None]:
    """Say which rank it was that did not answer."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{function}: {peers} did not answer: a process has ended or is stuck; see its own "
            f"output first ({error})"
        ) from error
