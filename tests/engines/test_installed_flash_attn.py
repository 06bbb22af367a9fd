"""An installed flash_attn on CUDA. No test has run with the real package: stand-ins have its public
functions by their signatures (2.8.3, the beta of 3, flash_attn.cute), compute by the reference, and
do what the contract does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import cycle
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import flashmetal
import flashmetal.plan
from flashmetal.engines import installed_flash_attn as installed
from flashmetal.engines import stock
from flashmetal.integrations import flash_attn as shim
from flashmetal.plan import plan
from flashmetal.problem import AttentionProblem
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import FEATURES, SHAPE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="stand-ins are for the CPU")
HALVES = (torch.float16, torch.bfloat16)
CAPABILITIES = {"flash_attn 2": 8, "flash_attn 3": 9, "flash_attn 4": 10}
NEVER = {"bias", "head_dim_v"}
IS_RIGHT = installed._is_right
Answer = tuple[Tensor, Tensor]


def answer(*tensors: Any, causal: bool, window: tuple[int, int], **options: Any) -> Answer:
    """What the reference says; the operators' peculiarities are asked for first."""
    q, k, v = tensors[:3]
    assert all(x.dtype in HALVES and x.stride(-1) == 1 for x in (q, k, v))
    assert all(not x.data_ptr() % 16 for x in (q, k, v))
    assert not torch.is_grad_enabled()
    function = flashmetal.flash_attn_varlen_func if tensors[3:] else flashmetal.flash_attn_func
    options |= {"window_size": window, "causal": causal, "return_attn_probs": True}
    o, lse, *_ = function(*tensors, **options, impl="reference")
    return o, lse


def both(flash_attn_func: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The public functions of a package whose function takes what makes a call ``packed``."""

    def flash_attn_varlen_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        **options: Any,
    ) -> Any:
        packed = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return flash_attn_func(q, k, v, **options, packed=packed)

    return {f.__name__: f for f in (flash_attn_func, flash_attn_varlen_func)}


def version_2(called: list[str]) -> dict[str, Callable[..., Any]]:
    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        packed: tuple[Any, ...] = (),
    ) -> Any:
        called.append("flash_attn 2")
        options = dict(softmax_scale=softmax_scale, softcap=softcap, alibi_slopes=alibi_slopes)
        o, lse = answer(q, k, v, *packed, causal=causal, window=window_size, **options)
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)
        return (o, lse, None) if return_attn_probs else o

    return both(flash_attn_func)


def version_3(called: list[str]) -> dict[str, Callable[..., Any]]:
    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        qv: Tensor | None = None,
        q_descale: Tensor | None = None,
        k_descale: Tensor | None = None,
        v_descale: Tensor | None = None,
        window_size: tuple[int, int] = (-1, -1),
        attention_chunk: int = 0,
        softcap: float = 0.0,
        num_splits: int = 1,
        pack_gqa: bool | None = None,
        deterministic: bool = False,
        sm_margin: int = 0,
        return_attn_probs: bool = False,
        packed: tuple[Any, ...] = (),
        seqused_k: Tensor | None = None,
    ) -> Any:
        called.append("flash_attn 3")
        options = dict(softmax_scale=softmax_scale, softcap=softcap)
        if packed:
            options["seqused_k"] = seqused_k
        found = answer(q, k, v, *packed, causal=causal, window=window_size, **options)
        return found if return_attn_probs else found[0]

    return both(flash_attn_func)


def version_4(called: list[str]) -> dict[str, Callable[..., Any]]:
    def flash_attn_func(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int | None, int | None] = (None, None),
        learnable_sink: Tensor | None = None,
        softcap: float = 0.0,
        return_lse: bool = False,
        packed: tuple[Any, ...] = (),
        seqused_k: Tensor | None = None,
    ) -> Any:
        called.append("flash_attn 4")
        assert q.shape[-1] in (64, 96, 128)
        assert all(bound is None or bound >= 0 for bound in window_size)
        window = tuple(-1 if bound is None else bound for bound in window_size)
        options: dict[str, Any] = dict(softmax_scale=softmax_scale, softcap=softcap)
        if packed:
            options["seqused_k"] = seqused_k
        o, lse = answer(q, k, v, *packed, causal=causal, window=(window[0], window[1]), **options)
        return o, lse if return_lse else None

    return both(flash_attn_func)


STAND_INS = {"flash_attn 2": version_2, "flash_attn 3": version_3, "flash_attn 4": version_4}


class World:
    """Which versions are installed, on which GPU, and the names of those that were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.called: list[str] = []
        self._monkeypatch = monkeypatch
        self.forget()

    def forget(self) -> None:
        installed._is_installed.cache_clear()
        flashmetal.plan._plan.cache_clear()
        IS_RIGHT.cache_clear()

    def install(
        self, name: str, capability: int | None = None, is_proven: bool = False
    ) -> ModuleType:
        module = ModuleType(installed.RULES[name].module)
        module.__dict__.update(STAND_INS[name](self.called))
        self._add(module)
        if "." in module.__name__:
            self._add(ModuleType("flash_attn"))
        capability = capability or CAPABILITIES[name]
        self._monkeypatch.setattr("flashmetal.engines.stock_cuda.capability", lambda: capability)
        self.forget()
        if is_proven:
            self._monkeypatch.setattr(installed, "_is_right", lambda _: True)
        return module

    def _add(self, module: ModuleType) -> None:
        module.__spec__ = ModuleSpec(module.__name__, None)
        self._monkeypatch.setitem(__import__("sys").modules, module.__name__, module)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    monkeypatch.undo()
    made.forget()


def on_cuda(**fields: Any) -> tuple[AttentionProblem, Any]:
    problem, inputs = make_inputs(**{**SHAPE, "head_dim": 64, **fields})
    return problem._replace(device="cuda"), inputs


CALLS = {name: call for name, call in FEATURES.items() if not NEVER & set(call)}


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize(
    ("feature", "dtype"), list(zip(CALLS, cycle(HALVES), strict=False)), ids=str
)
def test_it_serves_what_its_rules_take(
    feature: str, dtype: torch.dtype, name: str, world: World
) -> None:
    world.install(name, is_proven=True)
    problem, inputs = on_cuda(**CALLS[feature], dtype=dtype)
    rules = installed.RULES[name]
    refused = (problem.alibi and not rules.alibi) or (problem.seqused_k and not rules.seqused_k)
    taken = stock.stock_cuda.installed(problem)
    assert taken == (None if refused else name)
    if taken is None:
        return
    assert stock.refuse(problem) is None
    world.called.clear()
    o, lse = stock.forward(problem, inputs)
    assert set(world.called) <= {name}
    assert world.called or not inputs.q.numel() or not inputs.k.numel()
    assert_matches_reference(o, lse, problem._replace(device="cpu"), inputs)


@pytest.mark.parametrize(
    ("capability", "versions", "expected"),
    [
        (9, (2, 3, 4), "flash_attn 3"),
        (9, (2, 4), "flash_attn 4"),
        (10, (2, 3, 4), "flash_attn 4"),
        (8, (2, 3, 4), "flash_attn 2"),
        (7, (2, 3, 4), None),
        (10, (3,), None),
    ],
)
def test_the_gpu_decides_among_several(
    capability: int, versions: tuple[int, ...], expected: str | None, world: World
) -> None:
    for version in versions:
        world.install(f"flash_attn {version}", capability)
    problem, _ = on_cuda(dtype=torch.float16, window_right=0)
    assert stock.stock_cuda.installed(problem) == expected


def test_explain_says_which_and_gradients_are_not_its(world: World) -> None:
    problem, _ = on_cuda(dtype=torch.float16, softcap=2.0)
    assert plan(problem).engine == "portable"
    world.install("flash_attn 2")
    assert plan(problem)[:3] == ("stock", None, "flash_attn 2 is the fastest on CUDA")
    training = problem._replace(needs_grad=True)
    assert plan(training)[0::4] == ("stock", "portable")
    assert plan(training._replace(softcap=0.0)).backward == "stock"


def test_one_that_is_wrong_is_left_alone(world: World) -> None:
    module = world.install("flash_attn 2")
    right: Any = module.flash_attn_func

    def without_mask(*tensors: Tensor, **options: Any) -> Any:
        return right(*tensors, **{**options, "causal": False, "window_size": (-1, -1)})

    module.flash_attn_func = without_mask  # pyright: ignore[reportAttributeAccessIssue]
    problem, _ = on_cuda(dtype=torch.float16, window_right=0)
    with pytest.warns(UserWarning, match="flash_attn 2 is installed and is not used: .*o is wrong"):
        assert stock.stock_cuda.installed(problem) is None
    assert plan(problem)[:3] == ("stock", None, "torch's flash attention is the fastest on CUDA")


def test_our_own_import_is_not_taken(world: World) -> None:
    shim.install()
    try:
        world.forget()
        assert not any(installed._is_installed(rules.module) for rules in installed.RULES.values())
    finally:
        shim.uninstall()
