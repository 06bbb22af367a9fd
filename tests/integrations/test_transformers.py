"""Tiny random models of the attention kinds in use, through flashmetal and through eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from flashmetal import flash_attn_func
from flashmetal.integrations import transformers as integration

from .tiny_models import (
    DECODERS,
    DTYPES,
    ENCODERS,
    EXACT,
    KINDS,
    OTHERS,
    PADDINGS,
    assert_within_eager_error,
    exact_attention,
    exact_mask,
    make_batch,
    make_inputs,
    make_model,
    run,
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    AttentionInterface.register(EXACT, exact_attention)
    AttentionMaskInterface.register(EXACT, exact_mask)
    integration.register()
    yield
    integration.unregister()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DECODERS | ENCODERS)
def test_logits_of_a_batch_match_eager(kind: str, dtype: str, padding: str) -> None:
    batch = make_batch(padding)
    real = batch["attention_mask"].bool()
    assert_within_eager_error(make_model(kind, DTYPES[dtype]), integration.NAME, batch, real)


@pytest.mark.parametrize("padding", ["none", "right"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OTHERS)
def test_images_and_sounds_match_eager(kind: str, dtype: str, padding: str) -> None:
    inputs = make_inputs(kind, DTYPES[dtype], padding)
    real = inputs["decoder_attention_mask"].bool() if kind == "whisper" else ...
    assert_within_eager_error(make_model(kind, DTYPES[dtype]), integration.NAME, inputs, real)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_ours(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []

    def spy(q: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tuple(q.shape))
        return flash_attn_func(q, *args, **kwargs)

    monkeypatch.setattr(integration, "flash_attn_func", spy)
    run(make_model(kind), integration.NAME, **make_inputs(kind, torch.float32, "right"))
    assert len(calls) == {"clip": 4, "whisper": 6}.get(kind, 2)


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("kind", DECODERS)
def test_generated_tokens_equal_eager(kind: str, padding: str, cache: str | None) -> None:
    model = make_model(kind)
    batch = make_batch(padding)
    options: dict[str, Any] = dict(
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        cache_implementation=cache,
        disable_compile=True,
    )
    tokens = []
    for implementation in ("eager", integration.NAME):
        model.set_attn_implementation(implementation)
        tokens.append(model.generate(**batch, **options))
    assert torch.equal(*tokens)


def test_prefill_in_two_parts_matches_one() -> None:
    """The second part's queries stand at the end of the keys: bottom-right alignment."""
    model = make_model("mistral-window")
    ids = make_batch("none")["input_ids"]
    model.set_attn_implementation(integration.NAME)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :10], use_cache=True)
        second = model(ids[:, 10:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, whole[:, 10:])


def test_packed_sequences_do_not_see_each_other() -> None:
    model = make_model("llama-gqa")
    ids = make_batch("none")["input_ids"][:1]
    positions = torch.cat([torch.arange(8), torch.arange(11)])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    ours = run(model, integration.NAME, **inputs)
    alone = run(model, integration.NAME, input_ids=ids[:, 8:], use_cache=False)
    torch.testing.assert_close(ours[:, 8:], alone)


def test_gradients_match_eager() -> None:
    model = make_model("gpt-oss-sinks")
    batch = make_batch("left")
    gradients = []
    for implementation in ("eager", integration.NAME):
        model.zero_grad()
        model.set_attn_implementation(implementation)
        logits = model(**batch).logits[batch["attention_mask"].bool()]
        logits.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_compiles_to_one_graph() -> None:
    model = make_model("llama-gqa")
    model.set_attn_implementation(integration.NAME)
    ids = make_batch("none")["input_ids"]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)


def band(mask: torch.Tensor | None) -> tuple[int, int, bool]:
    assert mask is not None
    assert mask.dtype == torch.int8
    return mask.shape[2], mask.shape[3], mask.stride(3) != 0


def test_structure_is_kept_where_it_can_be() -> None:
    """What reaches the engines: no mask, a band with its window, or a bias over the keys alone."""
    sizes: dict[str, Any] = dict(batch_size=2, q_length=16, kv_length=16)
    make = integration.attention_mask
    padding = torch.ones(2, 16, dtype=torch.bool)
    assert make(**sizes, attention_mask=padding) is None
    window = sliding_window_causal_mask_function(5)
    assert band(make(**sizes, mask_function=window)) == (5, 16, False)
    assert make(**sizes, mask_function=sliding_window_causal_mask_function(16)) is None
    padding = padding.clone()
    padding[0, :3] = False
    assert band(make(**sizes, attention_mask=padding)) == (16, 16, True)
    assert band(make(**sizes, attention_mask=padding, mask_function=window)) == (5, 16, True)
    static = dict(sizes, kv_length=64, q_offset=torch.tensor(0))
    assert band(make(**static, mask_function=causal_mask_function)) == (16, 16, False)


def test_other_patterns_become_a_bias() -> None:
    sizes: dict[str, Any] = dict(batch_size=2, q_length=6, kv_length=6)
    chunked = chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64))
    mask = integration.attention_mask(**sizes, mask_function=chunked)
    assert mask is not None
    rows, columns = torch.arange(6)[:, None], torch.arange(6)[None]
    visible = (columns <= rows) & (columns // 3 == rows // 3)
    assert torch.equal(mask == 0, visible.expand(2, 1, 6, 6))
    assert torch.equal(mask == float("-inf"), ~visible.expand(2, 1, 6, 6))


@pytest.mark.parametrize("option", [{"output_attentions": True}, {"cache": object()}])
def test_what_is_not_served_is_refused_by_name(option: dict[str, Any]) -> None:
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(NotImplementedError, match=integration.NAME):
        integration.attention(torch.nn.Module(), q, q, q, None, **option)


def test_unregister_takes_the_name_back() -> None:
    integration.unregister()
    assert integration.NAME not in AttentionInterface()
    with pytest.raises(ValueError, match=integration.NAME):
        make_model("llama-gqa").set_attn_implementation(integration.NAME)
