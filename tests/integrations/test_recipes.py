"""The recipes of docs/recipes.md run as they stand, take ten lines, and give the right numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import flashmetal
from flashmetal.integrations import flash_attn as shim
from flashmetal.integrations import transformers as integration

from .tiny_models import make_model

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.*?)$.*?^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


def check_transformers(names: dict[str, Any]) -> None:
    model = names["model"].cpu()
    assert model.config._attn_implementation == integration.NAME
    model.set_attn_implementation("eager")
    expected = model.generate(names["prompts"].cpu(), max_new_tokens=8, do_sample=False)
    assert torch.equal(names["tokens"].cpu(), expected)


def check_sdpa(names: dict[str, Any]) -> None:
    q, k, v, out = (names[name].cpu() for name in ("q", "k", "v", "out"))
    assert not names["sdpa"].installation()
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def check_shim(names: dict[str, Any]) -> None:
    q, k, v, out = (names[name].cpu() for name in ("q", "k", "v", "out"))
    expected = flashmetal.flash_attn_func(q, k, v, causal=True, window_size=(255, 0), softcap=30.0)
    torch.testing.assert_close(out, expected)


def check_varlen(names: dict[str, Any]) -> None:
    q, k, v, out = (names[name].detach().cpu() for name in ("q", "k", "v", "out"))
    parts = [x.split(names["lengths"].tolist()) for x in (q, k, v)]
    expected = [
        flashmetal.flash_attn_func(*(x[None] for x in p), causal=True)[0]
        for p in zip(*parts, strict=True)
    ]
    torch.testing.assert_close(out, torch.cat(expected))


def check_cache(names: dict[str, Any]) -> None:
    """The cache was zeros: the one value that is not has the share exp(s) / (exp(s) + length)."""
    q, k, v, out = (names[name].cpu() for name in ("q", "k", "v", "out"))
    weights = torch.exp((q * k.repeat_interleave(4, 2)).sum(-1, keepdim=True) / 8)
    shares = weights / (weights + names["lengths"].cpu()[:, None, None, None])
    torch.testing.assert_close(out, shares * v.repeat_interleave(4, 2))
    assert torch.equal(names["k_cache"].cpu()[[0, 1], [1000, 37]], k[:, 0])


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "A transformers model": check_transformers,
    "Code that calls `scaled_dot_product_attention`": check_sdpa,
    "Code that imports `flash_attn`": check_shim,
    "Sequences of many lengths, without padding": check_varlen,
    "A cache of keys and values": check_cache,
}


@pytest.fixture
def undone() -> Iterator[None]:
    """What recipes leave registered or installed is undone."""
    yield
    integration.unregister()
    shim.uninstall()
    assert "flash_attn" not in sys.modules


def test_every_recipe_is_checked() -> None:
    assert list(RECIPES) == list(CHECKS)
    assert PAGE.count("```python") == len(CHECKS)


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("title", CHECKS)
def test_recipe(title: str, tmp_path: Path) -> None:
    source = RECIPES[title]
    assert len([line for line in source.splitlines() if line]) <= 10
    make_model("llama-gqa").save_pretrained(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"path": tmp_path}
    exec(source, names)
    CHECKS[title](names)
