"""Models as on a Mac: Metal kernels that prove themselves first, in training and generation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor

import metalsim
from flashmetal.engines.metal import Gpu, Runtime, Trust, metal_runtime
from flashmetal.integrations import transformers as integration
from flashmetal.settings import settings
from flashmetal.testing import error_budget

PADDING = (7, 3, 0)  # before the tokens of each prompt
CONFIG = transformers.LlamaConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
    pad_token_id=0,
)


@pytest.fixture(params=["M1", "M5"], autouse=True)
def mac(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every call must be a Metal kernel's, and a kernel that is set aside is an error."""
    runtime = Runtime(
        metalsim.compile_shader, "cpu", Gpu.named(request.param, cores=1), trust=Trust()
    )
    monkeypatch.setenv("FLASHMETAL_IMPL", "metal")
    settings.cache_clear()
    with metal_runtime(runtime), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield
    settings.cache_clear()


def model(attention: str) -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    integration.register()
    made = transformers.LlamaForCausalLM(CONFIG)
    made.set_attn_implementation(attention)
    return made


def batch() -> tuple[Tensor, Tensor]:
    """Token ids and their mask, padded on the left."""
    torch.manual_seed(1)
    ids = torch.randint(3, 100, (len(PADDING), 20))
    mask = torch.arange(20) >= torch.tensor(PADDING)[:, None]
    return ids * mask, mask.long()


def gradients(attention: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Those of all parameters, of a loss in which no padding takes part."""
    ids, mask = batch()
    labels = ids.masked_fill(mask == 0, -100)
    labels[range(len(PADDING)), PADDING] = -100  # else predicted from the last of the padding
    trained = model(attention).to(dtype)
    trained(ids, attention_mask=mask, labels=labels).loss.backward()
    return torch.cat([x.grad.flatten() for x in trained.parameters() if x.grad is not None])


def test_a_padded_batch_trains_like_eager() -> None:
    exact = gradients("sdpa", torch.float64)  # eager has NaN in padding, with the least float64
    error = (gradients(integration.NAME) - exact).abs().max()
    assert error <= error_budget(gradients("eager"), exact)


def test_a_padded_batch_generates_like_eager() -> None:
    ids, mask = batch()
    ours, eager = (
        model(attention).generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        for attention in (integration.NAME, "eager")
    )
    assert torch.equal(ours, eager)
