"""Tiny random diffusion models through the flashmetal backend and through diffusers' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from flashmetal.integrations import diffusers as integration
from flashmetal.integrations import sdpa
from flashmetal.testing import error_budget

from ..interpreter import output

FLUX: dict[str, Any] = dict(
    patch_size=1,
    in_channels=4,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=16,
    num_attention_heads=2,
    joint_attention_dim=32,
    pooled_projection_dim=32,
    axes_dims_rope=[4, 4, 8],
)
WAN: dict[str, Any] = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    freq_dim=256,
    ffn_dim=32,
    num_layers=2,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
    rope_max_seq_len=32,
)
UNET: dict[str, Any] = dict(
    sample_size=8,
    in_channels=4,
    out_channels=4,
    layers_per_block=1,
    block_out_channels=(8, 16),
    norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=4,
)
B, SQ, SK, HQ, D = 2, 6, 9, 4, 8


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    integration.register()
    yield
    integration.unregister()


def flux() -> tuple[Any, dict[str, Any]]:
    inputs = dict(
        hidden_states=torch.randn(2, 16, 4),
        encoder_hidden_states=torch.randn(2, 5, 32),
        pooled_projections=torch.randn(2, 32),
        timestep=torch.tensor([1.0, 0.3]),
        img_ids=torch.randint(4, (16, 3)).float(),
        txt_ids=torch.zeros(5, 3),
    )
    return FluxTransformer2DModel(**FLUX), inputs


def wan() -> tuple[Any, dict[str, Any]]:
    inputs = dict(
        hidden_states=torch.randn(1, 4, 2, 8, 8),
        timestep=torch.tensor([3]),
        encoder_hidden_states=torch.randn(1, 7, 16),
    )
    return WanTransformer3DModel(**WAN), inputs


def unet() -> tuple[Any, dict[str, Any]]:
    inputs = dict(
        sample=torch.randn(2, 4, 8, 8),
        timestep=torch.tensor(7),
        encoder_hidden_states=torch.randn(2, 5, 16),
        encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool(),
    )
    return UNet2DConditionModel(**UNET), inputs


def run(model: Any, inputs: dict[str, Any], dtype: torch.dtype) -> torch.Tensor:
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in inputs.items()}
    with torch.no_grad():
        return model.to(dtype)(**inputs).sample


def sharpen(model: Any) -> None:
    """Scores large enough that attention is more than an average."""
    for name, parameter in model.named_parameters():
        if "to_q" in name and parameter.ndim == 2:
            parameter.data.mul_(8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [flux, wan], ids=["flux", "wan"])
def test_transformers_match_the_native_backend(
    make: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make()
    sharpen(model)
    model = model.eval().to(dtype)
    exact = run(model, inputs, torch.float64)
    eager = run(model, inputs, dtype)
    calls = record_calls(integration, monkeypatch)
    model.set_attention_backend("flashmetal")
    found = run(model, inputs, dtype)
    layers = {flux: 2, wan: 4}[make]
    assert len(calls) == layers
    assert (found.double() - exact).abs().max() <= error_budget(eager, exact)
    with attention_backend("native"):
        model.reset_attention_backend()
        assert torch.equal(run(model, inputs, dtype), eager)
    assert len(calls) == layers


def test_an_old_unet_is_served_by_the_sdpa_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention never asks diffusers for a backend."""
    model, inputs = unet()
    sharpen(model)
    model = model.eval()
    exact = run(model, inputs, torch.float64)
    eager = run(model, inputs, torch.float32)
    model.set_attention_backend("flashmetal")
    calls = record_calls(sdpa, monkeypatch)
    with sdpa.installed(devices=("cpu",), always=True):
        found = run(model, inputs, torch.float32)
    assert len(calls) == 8  # self and cross attention of four blocks
    assert (found.double() - exact).abs().max() <= error_budget(eager, exact)


def record_calls(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of flashmetal that a module makes from now on."""
    calls: list[Any] = []
    serve = module.flash_attn_func

    def recording(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return serve(*arguments, **options)

    monkeypatch.setattr(module, "flash_attn_func", recording)
    return calls


def masks() -> dict[str, Any]:
    torch.manual_seed(1)
    keys = torch.ones(B, SK).bool()
    keys[1, 4:] = False
    shapes = {"pairs": (SQ, SK), "heads": (1, HQ, SQ, SK), "rows": (B, 1, SQ, 1)}
    found: dict[str, Any] = {f"additive {n}": torch.randn(shape) for n, shape in shapes.items()}
    found |= {f"bool {n}": torch.randn(shape) > -0.5 for n, shape in shapes.items()}
    hidden = torch.ones(B, 1, SQ, SK).bool()
    hidden[0, 0, 2] = False
    padding = torch.zeros(B, SK).masked_fill(~keys, -1e4)
    return {"none": None, "keys": keys, "additive keys": padding, "a hidden row": hidden, **found}


@pytest.mark.parametrize("mask", masks())
def test_masks_mean_what_they_do_natively(mask: str) -> None:
    q, k, v = torch.randn(B, SQ, HQ, D), *torch.randn(2, B, SK, 2, D)
    assert_native(q, k, v, attn_mask=masks()[mask], scale=0.4, enable_gqa=True)


@pytest.mark.parametrize("keys", [3, SQ, SK])
def test_causal_begins_at_the_first_key(keys: int) -> None:
    q, k, v = torch.randn(B, SQ, HQ, D), *torch.randn(2, B, keys, HQ, D)
    assert_native(q, k, v, is_causal=True)


def assert_native(q: Any, k: Any, v: Any, **options: Any) -> None:
    def native(dtype: torch.dtype) -> Any:
        mask = options.get("attn_mask")
        if mask is not None:
            mask = mask if mask.dtype == torch.bool else mask.to(dtype)
            mask = mask[:, None, None] if mask.shape == k.shape[:2] else mask
        inputs = [x.transpose(1, 2).to(dtype) for x in (q, k, v)]
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(*inputs, **{**options, "attn_mask": mask}).transpose(1, 2)

    found, exact = integration.attention(q, k, v, **options), native(torch.float64)
    assert (found.double() - exact).abs().max() <= error_budget(native(torch.float32), exact)


def test_lse_and_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in torch.randn(3, B, SQ, HQ, D).unbind())
    out, lse = integration.attention(q, k, v, return_lse=True)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * D**-0.5
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    (out.sum() + lse.sum()).backward()
    assert all(x.grad is not None for x in (q, k, v))


def test_what_is_not_served_is_refused() -> None:
    q = torch.randn(1, 3, 2, 8)
    with pytest.raises(NotImplementedError, match="flashmetal: context parallelism"):
        integration.attention(q, q, q, _parallel_config=object())
    with pytest.raises(ValueError, match="is_causal=True and an attn_mask exclude each other"):
        integration.attention(q, q, q, attn_mask=torch.ones(3, 3).bool(), is_causal=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_a_mask_of_integers_is_no_scores(dtype: torch.dtype) -> None:
    q, keys = torch.randn(2, 3, 2, 8), torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=dtype)
    with pytest.raises(TypeError, match=f"flashmetal: attn_mask must be boolean.*got {dtype}; use"):
        integration.attention(q, q, q, attn_mask=keys)


def test_unregister_takes_the_name_back() -> None:
    model, _ = wan()
    model.set_attention_backend("flashmetal")
    integration.register()  # twice does no more than once
    integration.unregister()
    assert "flashmetal" not in {name.value for name in AttentionBackendName}
    with pytest.raises(ValueError, match="backend='flashmetal'"):
        model.set_attention_backend("flashmetal")
    with pytest.raises(ValueError, match="flashmetal"), attention_backend("flashmetal"):
        pass
    model.set_attention_backend("native")
    integration.unregister()


def test_the_flash_attn_shim_serves_diffusers_flash_backend() -> None:
    """With metadata, which diffusers asks for when it is imported; so in a new interpreter."""
    code = """if True:
        from flashmetal.integrations import flash_attn as shim
        shim.install(metadata=True)
        import torch
        from tests.integrations.test_diffusers import run, wan
        from diffusers.models.attention_dispatch import flash_attn_func, attention_backend
        assert flash_attn_func.__module__ == "flashmetal.api"
        torch.manual_seed(0)
        model, inputs = wan()
        native = run(model, inputs, torch.float32)
        model.set_attention_backend("flash")
        torch.testing.assert_close(run(model, inputs, torch.float32), native)"""
    output(code)
