"""Ranks as processes of this machine, in one gloo group, that run one function after the other."""

from __future__ import annotations

import io
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_MODULES = ["flashmetal.distributed", "flashmetal.testing", "torch._dynamo", "unittest.mock"]
PATIENCE = 120.0  # seconds; a test that waits longer has met a hang


class Processes:
    """``size`` ranks that wait for work; an answer is what a function returned, or its error."""

    def __init__(self, size: int, folder: Path) -> None:
        # A fork server has loaded all modules and has no threads: its children start at once.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_MODULES)
        self._connections: list[Connection] = []
        self.processes: list[Any] = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            arguments = rank, size, str(folder / "store"), theirs
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()
            theirs.close()
            self._connections.append(ours)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(rank, *arguments)`` gives on every rank."""
        answers = self.answers(function, *arguments)
        for rank, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                raise AssertionError(f"rank {rank} raised") from answer
        return answers

    def answers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The same, errors in their place; EOFError of a rank that has ended."""
        for connection in self._connections:
            connection.send_bytes(_packed((function, arguments)))
        return [_answer(connection) for connection in self._connections]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join(PATIENCE)


def _answer(connection: Connection) -> Any:
    if not connection.poll(PATIENCE):
        raise AssertionError("a rank has not answered: it hangs")
    try:
        return _unpacked(connection.recv_bytes())
    except EOFError as ended:
        return ended


def _serve(rank: int, size: int, store: str, connection: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if os.uname().sysname == "Darwin" else "lo")
    # The group's patience, half an hour, is longer than a test's: what ends in time is no timeout.
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while True:
        try:
            function, arguments = _unpacked(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = function(rank, *arguments)
        except Exception as error:
            answer = error
        connection.send_bytes(_packed(answer))
        if type(answer) is RuntimeError:
            return  # as a program ends that catches nothing


def _packed(value: Any) -> bytes:
    """Bytes, for tensors sent as they are would share memory that a rank may take with it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
