"""What goes wrong is said on every rank, and no rank waits for one that has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from flashmetal import distributed

from ..features import FEATURES, SHAPE
from .processes import Processes
from .spread import Case, attend_to_share

Q = torch.zeros(1, 10, 4, 8)


@pytest.mark.parametrize("change", ["a rank dies", "a rank raises"])
def test_a_rank_that_ends_ends_the_others(change: str, tmp_path: Path) -> None:
    ranks = Processes(4, tmp_path)
    case = Case("ring", 4, "zigzag", {**SHAPE, **FEATURES["causal"]}, change)
    answers = ranks.answers(attend_to_share, case)
    ranks.close()
    for rank in (0, 1, 3):
        assert isinstance(answers[rank], RuntimeError)
        assert "distributed.flash_attn_func: rank" in str(answers[rank])
        assert "did not answer" in str(answers[rank])
    assert isinstance(answers[2], EOFError if change == "a rank dies" else RuntimeError)
    assert not any(process.is_alive() for process in ranks.processes)


def call(rank: int, function: str, options: dict[str, Any]) -> Any:
    del rank
    given = {"q": Q, "k": Q, "v": Q, **options}
    if given.pop("mesh", False):
        given["group"] = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    return getattr(distributed, function)(**given)


STARTS = torch.tensor([0, 40], dtype=torch.int32)
PACKED = {"q": Q[0], "k": Q[0], "v": Q[0], "cu_seqlens_q": STARTS, "cu_seqlens_k": STARTS}
WRONG: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "rows": ("flash_attn_func", {"seqlen_q": 48}, ValueError, "q must have 12 of the 48 rows"),
    "packed rows": (
        "flash_attn_varlen_func",
        {**PACKED, "method": "ulysses", "cu_seqlens_k": STARTS * 2},
        ValueError,
        "k must have 20 of the 80 rows",
    ),
    "offsets": (
        "flash_attn_varlen_func",
        {**PACKED, "cu_seqlens_q": STARTS.flip(0)},
        ValueError,
        "cu_seqlens_q must ascend from 0",
    ),
    "offsets' dtype": (
        "flash_attn_varlen_func",
        {**PACKED, "cu_seqlens_q": STARTS.long()},
        TypeError,
        "cu_seqlens_q must be int32",
    ),
    "no offsets": (
        "flash_attn_varlen_func",
        {**PACKED, "cu_seqlens_q": None},
        TypeError,
        "cu_seqlens_q must be a torch.Tensor",
    ),
    "method": ("flash_attn_func", {"method": "tree"}, ValueError, "one of .'ring', 'ulysses'"),
    "alibi": (
        "flash_attn_func",
        {"alibi_slopes": torch.ones(4)},
        NotImplementedError,
        "pass method=.ulysses.",
    ),
    "sharding": ("flash_attn_func", {"sharding": "striped"}, ValueError, "one of .'zigzag'"),
    "mesh": ("flash_attn_func", {"mesh": True}, ValueError, "a mesh of one dimension, got 2"),
    "group": ("flash_attn_func", {"group": "cp"}, TypeError, "a DeviceMesh or None, got str"),
    "heads": (
        "flash_attn_func",
        {**dict.fromkeys("qkv", Q[:, :, :3]), "method": "ulysses"},
        ValueError,
        "the 3 query heads must be a multiple of the 4 ranks",
    ),
    "float64": (
        "flash_attn_func",
        {name: Q.double() for name in "qkv"},
        TypeError,
        "pass method=.ulysses.",
    ),
    "engine": (
        "flash_attn_func",
        {"impl": "stock", "softcap": 2.0},
        NotImplementedError,
        "softcap",
    ),
    "engine of a window": (
        "flash_attn_func",
        {"impl": "stock", "window_size": (20, 0)},
        NotImplementedError,
        "window",
    ),
    "values": ("flash_attn_func", {"v": Q[:, :5]}, ValueError, "k and v must agree"),
    "no tensor": ("flash_attn_varlen_func", {**PACKED, "q": 3}, TypeError, "q must be a torch.Te"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_come_on_every_rank(processes: Processes, wrong: str) -> None:
    function, options, kind, message = WRONG[wrong]
    for answer in processes.answers(call, function, options):
        assert isinstance(answer, kind)
        with pytest.raises(kind, match=message):
            raise answer
        assert str(answer).startswith(("flashmetal:", f"distributed.{function}"))


def test_a_rank_outside_the_group_is_refused(processes: Processes) -> None:
    for answer in processes.answers(local_rows_of, 4):
        assert "rank must be from 0 to 3, got 4" in str(answer)


def local_rows_of(rank: int, other: int) -> torch.Tensor:
    del rank
    return distributed.local_rows(40, rank=other)


def test_without_a_group() -> None:
    with pytest.raises(RuntimeError, match="call torch.distributed.init_process_group"):
        distributed.flash_attn_func(Q, Q, Q)
