"""Trust on first use: runtimes that refuse, fail or lie, on the simulator; the next plan serves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch

import flashmetal
import metalsim
from flashmetal import plan as plans
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, SetAside, Trust, metal_runtime
from flashmetal.engines.metal import trust as trust_module
from flashmetal.engines.metal.launch import Addresses, loads_of
from flashmetal.engines.metal.params import Geometry
from flashmetal.engines.metal.proof import small_call, without_spare
from flashmetal.engines.metal.variant import Loads, Variant, render
from flashmetal.problem import AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.request import AttentionInputs
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import CACHES, DROPOUT, FEATURES, SHAPE
from .simulated import gpu_of

Fault = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]


def raises(kernel: Any, arguments: tuple[Any, ...], launch: dict[str, Any]) -> None:
    raise RuntimeError("the command buffer was rejected")


def gives_nan(kernel: Any, arguments: tuple[Any, ...], launch: dict[str, Any]) -> None:
    for x in outputs(arguments):
        x.fill_(float("nan"))


def gives_wrong_numbers(kernel: Any, arguments: tuple[Any, ...], launch: dict[str, Any]) -> None:
    kernel(*arguments, **launch)
    for x in outputs(arguments):
        x.mul_(1.02)


def outputs(arguments: tuple[Any, ...]) -> list[torch.Tensor]:
    """All floating tensors behind q, k and v; inputs among them are changed too, which is wrong."""
    tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
    return [x for x in tensors[3:5] if x.is_floating_point()]


class Faulty:
    """A library whose kernels have a fault."""

    def __init__(self, library: metalsim.ShaderLibrary, fault: Fault) -> None:
        self._library = library
        self._fault = fault

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel = getattr(self._library, name)
        return lambda *arguments, **launch: self._fault(kernel, arguments, launch)


def faulty_runtime(
    fault: Fault | None, mark: str, gpu: str = "M1", trust: Trust | None = None
) -> Runtime:
    """Every source that holds `mark` has the fault, or, without one, does not compile."""

    def compile_shader(source: str) -> Any:
        if mark not in source:
            return metalsim.compile_shader(source)
        if fault is None:
            raise SyntaxError("program_source:1:1: error: unknown type name 'simdgroup_matrix'")
        return Faulty(metalsim.compile_shader(source), fault)

    return Runtime(compile_shader, "cpu", Gpu.named(gpu), trust=trust or Trust())


HALF = {"seqlen_q": 20, "seqlen_k": 40, "dtype": torch.float16}
# kernel: (what only its source holds, the chip, the shape, what serves then)
TIERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "tensor": ('"tile_tensor_ops.h"', "M5", HALF, "simdgroup"),
    "simdgroup": ('"tile.h"', "M1", {"seqlen_q": 20, "seqlen_k": 40}, "scalar"),
    "decode": ("attention_decode.metal", "M1", {"seqlen_q": 1, "seqlen_k": 40}, "simdgroup"),
}
FAULTS: dict[str, Fault | None] = {
    "does not compile": None,
    "raises": raises,
    "gives NaN": gives_nan,
    "gives wrong numbers": gives_wrong_numbers,
}


@pytest.fixture(autouse=True)
def metal_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """impl="auto" prefers the simulated Metal engine, as it prefers the real one on MPS."""
    judge = plans._judge

    def judged(problem: AttentionProblem, engine: str) -> tuple[str | None, str]:
        if engine == "metal" and metal.kernels_for(problem)[0]:
            return None, "as on a Mac"
        return judge(problem, engine)

    monkeypatch.setattr(plans, "_judge", judged)
    plans._plan.cache_clear()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tier", TIERS)
def test_a_fault_sets_the_kernel_aside_and_the_next_serves(tier: str, fault: str) -> None:
    mark, gpu, lengths, following = TIERS[tier]
    problem, inputs = make_inputs(**{**SHAPE, **lengths, "head_dim": 32}, window_right=0)
    with metal_runtime(faulty_runtime(FAULTS[fault], mark, gpu)):
        assert plans.plan(problem).kernel == tier
        with pytest.warns(RuntimeWarning, match="is set aside") as caught:
            o, lse = flashmetal.flash_attn_func(*inputs[:3], causal=True, return_lse=True)
        assert len(caught) == 1
        assert "D=32" in str(caught[0].message)
        assert plans.plan(problem).kernel == following
        assert_matches_reference(o, lse, problem, inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = flashmetal.flash_attn_func(*inputs[:3], causal=True)
        assert torch.equal(again, o)


def test_gradients_come_from_the_next_engine() -> None:
    q, k, v = (torch.randn(1, 20, 2, 32, requires_grad=True) for _ in range(3))
    runtime = faulty_runtime(raises, "attention_backward_kv.metal")
    warned = pytest.warns(RuntimeWarning, match="attention_backward_kv float32 D=32")
    with metal_runtime(runtime), warned:
        flashmetal.flash_attn_func(q, k, v).sum().backward()
    mine = [x.grad for x in (q, k, v)]
    reference = flashmetal.flash_attn_func(q, k, v, impl="reference").sum()
    for found, expected in zip(mine, torch.autograd.grad(reference, (q, k, v)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kernel", "mark", "name"),
    [
        ("simdgroup", '"tile.h"', "attention_forward float32 D=32 simdgroup"),
        ("scalar", "attention_forward_scalar.metal", "attention_forward_scalar float32 D=32"),
        ("decode", "attention_decode.metal", "attention_decode float32 D=32 simdgroup"),
    ],
)
def test_an_explicit_kernel_raises_and_names_itself(kernel: str, mark: str, name: str) -> None:
    """Each time, and also where the call is the very one of the proof."""
    q = torch.randn(1, 20, 2, 32)
    call = partial(flashmetal.flash_attn_func, q, q, q, impl="metal", kernel=kernel)
    with metal_runtime(faulty_runtime(gives_nan, mark)):
        with pytest.warns(RuntimeWarning), pytest.raises(SetAside, match=f"{name}.* is wrong at"):
            call()
        with pytest.raises(SetAside, match=f"{name}.* is wrong at"):
            call()


def test_verdicts_outlive_the_process_and_know_the_source(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    q = torch.randn(1, 20, 2, 32)
    proofs: list[str] = []

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        proofs.append(source)
        return metalsim.compile_shader(source)

    for _ in range(2):
        runtime = Runtime(compile_shader, "cpu", Gpu.named("M1"), trust=Trust(path))
        with metal_runtime(runtime), patch.object(metal.Trust, "_prove", autospec=True) as proved:
            proved.return_value = ""
            flashmetal.flash_attn_func(q, q, q, impl="metal")
        assert proved.call_count == (1 if len(proofs) == 1 else 0)
    assert list(json.loads(path.read_text()).values()) == [""]


def test_a_bad_verdict_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    q = torch.randn(1, 20, 2, 32)
    runtime = faulty_runtime(raises, '"tile.h"', trust=Trust(path))
    with metal_runtime(runtime), pytest.warns(RuntimeWarning):
        flashmetal.flash_attn_func(q, q, q)
    plans._plan.cache_clear()
    with metal_runtime(faulty_runtime(raises, '"tile.h"', trust=Trust(path))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            flashmetal.flash_attn_func(q, q, q)
        assert "command buffer" in str(flashmetal.explain(q, q, q))


def test_an_unreadable_file_of_verdicts_is_no_verdict(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.json"
    path.write_text("{")
    q = torch.randn(1, 20, 2, 32)
    with metal_runtime(faulty_runtime(None, "no such mark", trust=Trust(path))):
        flashmetal.flash_attn_func(q, q, q, impl="metal")
    assert list(json.loads(path.read_text()).values()) == [""]


def test_memory_that_is_short_is_no_verdict(tmp_path: Path) -> None:
    def is_short(kernel: Any, arguments: tuple[Any, ...], launch: dict[str, Any]) -> None:
        raise torch.OutOfMemoryError("MPS backend out of memory (allocated: 20 GB)")

    path, q = tmp_path / "verdicts.json", torch.randn(1, 20, 2, 32)
    with (
        metal_runtime(faulty_runtime(is_short, '"tile.h"', trust=Trust(path))),
        pytest.raises(torch.OutOfMemoryError),
    ):
        flashmetal.flash_attn_func(q, q, q, impl="metal")
    with metal_runtime(faulty_runtime(None, "no such mark", trust=Trust(path))):
        flashmetal.flash_attn_func(q, q, q, impl="metal")


def test_verdicts_of_many_threads_are_all_kept(tmp_path: Path) -> None:
    path, names = tmp_path / "verdicts.json", [f"attention {i}" for i in range(40)]
    trust = Trust(path)

    def ask(name: str) -> None:
        trust.require([cast("Variant", name)], lambda: None)

    with patch.object(trust_module, "render", str), ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, names))
    assert len(json.loads(path.read_text())) == len(names)
    assert [x.name for x in tmp_path.iterdir()] == [path.name]


CALLS = FEATURES | CACHES | DROPOUT


@pytest.mark.parametrize(
    ("call", "kernel"),
    [
        (call, kernel)
        for kernel in ("simdgroup", "decode")
        for call in CALLS
        if call not in DROPOUT or kernel != "decode"
    ],
)
def test_the_small_problem_has_the_variant_of_the_call(call: str, kernel: str) -> None:
    fields: dict[str, Any] = {**SHAPE, **CALLS[call]}
    if kernel == "decode":
        fields["seqlen_q"] = 2
    problem, inputs = make_inputs(**fields, seed=3)
    group = problem.heads_q // problem.heads_k if kernel == "decode" else 2
    geometry = Geometry(*(x.stride() for x in inputs[:3]), None, 0)
    loads = loads_of(problem, geometry, Addresses(*(x.data_ptr() % 16 for x in inputs[:3])))
    small, small_inputs = small_call(problem, loads, group)
    assert rendered(small, small_inputs, kernel) == rendered(problem, inputs, kernel)


@pytest.mark.parametrize("cache_format", ["int8", "fp8", "int4"])
@pytest.mark.parametrize("shift", [2, 4, 8])
def test_codes_of_the_small_problem_lie_like_those_of_the_call(
    cache_format: str, shift: int
) -> None:
    problem, inputs = make_inputs(
        **{**SHAPE, "head_dim": 64, "k_format": cache_format}, dtype=torch.bfloat16
    )
    codes = inputs.k.view(torch.uint8)
    moved = codes.new_empty(codes.numel() + shift)[shift:].view(codes.shape).copy_(codes)
    inputs = inputs._replace(k=moved.view(inputs.k.dtype))
    geometry = Geometry(*(x.stride() for x in inputs[:3]), None, 0)
    loads = loads_of(problem, geometry, Addresses(*(x.data_ptr() % 16 for x in inputs[:3])))
    small, small_inputs = small_call(problem, loads)
    ours, theirs = (
        rendered(*call, "simdgroup") for call in ((small, small_inputs), (problem, inputs))
    )
    assert ours == theirs


def test_gradients_prove_themselves_below_autograd() -> None:
    """There the reference would record nothing, and expect no gradients."""
    q, k, v = (torch.randn(1, 40, 2, 32, requires_grad=True) for _ in range(3))
    exact = flashmetal.flash_attn_func(q, k, v, impl="reference").sum()
    expected = torch.autograd.grad(exact, (q, k, v))
    with warnings.catch_warnings(), metal_runtime(faulty_runtime(None, "no such mark")):
        warnings.simplefilter("error")
        o = flashmetal.flash_attn_func(q, k, v, impl="metal")
        found = torch.autograd.grad(o.sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_proof_is_free_of_what_the_caller_told_torch() -> None:
    q, k, v = (torch.randn(1, 40, 2, 32) for _ in range(3))
    expected = flashmetal.flash_attn_func(q, k, v, impl="reference")
    with warnings.catch_warnings(), metal_runtime(faulty_runtime(None, "no such mark")):
        warnings.simplefilter("error")
        with torch.device("meta"):
            o = flashmetal.flash_attn_func(q, k, v, impl="metal")
    torch.testing.assert_close(o, expected)


def test_a_verdict_does_not_depend_on_numbers_that_the_source_does_not_know() -> None:
    numbers = ({"scale": 0.1}, {"softcap": 2.0}, {"dropout_p": 0.1})
    others = ({"scale": 1e38}, {"softcap": 1e-30}, {"dropout_p": 0.999})
    for pair in zip(numbers, others, strict=True):
        calls = (make_inputs(**SHAPE, **each)[0] for each in pair)
        one, other = (small_call(call, Loads(1, 1, 1))[0] for call in calls)
        assert one == other


def test_the_oracle_of_a_long_page_is_short() -> None:
    problem, _ = make_inputs(
        **{**SHAPE, "page_size": 5000, "bias": True, "alibi": True, "seqused_k": (41,)},
        k_format="int8",
    )
    small, given = small_call(problem, Loads(8, 8, 8))
    short, kept = without_spare(small, given)
    assert short.seqlen_k == short.page_size == kept.k.shape[1] < 100
    whole = attention_reference(small, given, torch.float64)
    for x, y in zip(attention_reference(short, kept, torch.float64), whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def rendered(problem: AttentionProblem, inputs: AttentionInputs, kernel: str) -> list[str]:
    """What a call of one part would compile."""
    sources: list[str] = []
    runtime = Runtime(lambda source: None, "cpu", gpu_of("M1"))

    def note(variant: Variant) -> Callable[..., None]:
        sources.append(render(variant))
        return lambda *arguments, **launch: None

    with metal_runtime(runtime), patch.object(runtime, "kernel", note):
        metal.forward(problem._replace(num_splits=1), inputs, kernel=kernel)
    return sources
