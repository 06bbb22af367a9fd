"""The ComfyUI node's override, by itself: against torch, in the layouts ComfyUI has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashmetal.testing import error_budget

PATH = Path(__file__).parents[2] / "examples" / "comfyui_flashmetal" / "__init__.py"
B, H, SQ, SK, D = 2, 3, 5, 7, 8


@pytest.fixture(scope="module")
def node() -> Any:
    """ComfyUI loads custom nodes by their path."""
    spec = importlib.util.spec_from_file_location("comfyui_flashmetal", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attention_pytorch(q: Any, k: Any, v: Any, heads: int, mask: Any = None, **options: Any) -> Any:
    """What ComfyUI's own function computes, by torch's SDPA."""
    if not options.get("skip_reshape"):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    if mask is not None:
        mask = mask[None] if mask.ndim == 2 else mask
        mask = mask[:, None] if mask.ndim == 3 else mask
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out if options.get("skip_output_reshape") else out.transpose(1, 2).flatten(2)


def call(function: Any, inputs: Any, mask: Any, dtype: torch.dtype, **options: Any) -> Any:
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    return function(*(x.to(dtype) for x in inputs), H, mask=mask, **options)


def masks() -> dict[str, Any]:
    torch.manual_seed(1)
    shapes = {"2d": (SQ, SK), "3d": (B, SQ, SK), "4d": (B, H, SQ, SK), "keys": (B, 1, 1, SK)}
    found: dict[str, Any] = {f"additive {n}": torch.randn(shape) for n, shape in shapes.items()}
    found |= {f"bool {n}": torch.randn(shape) > -0.5 for n, shape in shapes.items()}
    return {"none": None, **found, "a number a row": torch.randn(SQ, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("out", [False, True], ids=["flat out", "heads out"])
@pytest.mark.parametrize("heads", [False, True], ids=["flat", "heads"])
@pytest.mark.parametrize("mask", masks())
def test_matches_comfyuis_own(
    node: Any, mask: str, heads: bool, out: bool, dtype: torch.dtype
) -> None:
    shapes = [(B, H, s, D) if heads else (B, s, H * D) for s in (SQ, SK, SK)]
    inputs = [torch.randn(shape).to(dtype) for shape in shapes]
    options: dict[str, Any] = dict(skip_reshape=heads, skip_output_reshape=out)
    exact = call(attention_pytorch, inputs, masks()[mask], torch.float64, **options)
    eager = call(attention_pytorch, inputs, masks()[mask], dtype, **options)
    extra = dict(transformer_options={}, _inside_attn_wrapper=True, attn_precision=torch.float32)
    found = node.attention_override(None, *inputs, H, mask=masks()[mask], **options, **extra)
    assert found.shape == exact.shape
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= error_budget(eager, exact)


def test_unknown_options_are_left_to_the_original(node: Any) -> None:
    q = torch.randn(B, SQ, H * D)

    def original(*arguments: Any, **options: Any) -> Any:
        return arguments, options

    found, options = node.attention_override(
        original, q, q, q, H, skip_output_reshape=True, low_precision_attention=True
    )
    assert found[:3] == (q, q, q)
    assert found[3:] == (H, None)
    assert options == dict(
        low_precision_attention=True,
        attn_precision=None,
        skip_reshape=False,
        skip_output_reshape=True,
    )


def test_the_node_changes_a_clone_alone(node: Any) -> None:
    options: dict[str, Any] = {"transformer_options": {"patches": {}}, "other": 1}
    model = SimpleNamespace(model_options=options)
    model.clone = lambda: SimpleNamespace(model_options=model.model_options)
    (patched,) = node.NODE_CLASS_MAPPINGS["FlashmetalAttention"]().patch(model)
    override = patched.model_options["transformer_options"].pop("optimized_attention_override")
    assert override is node.attention_override
    assert patched.model_options == options == {"transformer_options": {"patches": {}}, "other": 1}
    assert node.FlashmetalAttention.INPUT_TYPES() == {"required": {"model": ("MODEL",)}}
