"""Tiny random models of the attention kinds in use, through flashmetal and through eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch._dynamo.utils import counters
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CompileConfig,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.generation import ContinuousBatchingConfig

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

CHECK = PreTrainedModel._check_and_adjust_attn_implementation


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
    assert len(calls) == {"clip": 4, "gemma4-shared-keys": 4, "whisper": 6}.get(kind, 2)


@pytest.mark.parametrize("batch", ["none", "left", "packed"])
def test_rows_a_model_drops_change_nothing(batch: str) -> None:
    """Gemma 4 computes the layers that share keys for the last rows alone, and cuts their masks."""
    model = make_model("gemma4-shared-keys")
    inputs = make_batch("none" if batch == "packed" else batch)
    if batch == "packed":
        positions = torch.cat([torch.arange(n) for n in (9, 8, 2)])[None]
        inputs = {"input_ids": inputs["input_ids"][:1], "position_ids": positions}
        inputs["use_cache"] = False
    whole = run(model, integration.NAME, **inputs)
    last = run(model, integration.NAME, **inputs, logits_to_keep=4)
    torch.testing.assert_close(last, whole[:, -4:])


@pytest.mark.parametrize(
    ("padding", "cache"), [("none", None), ("left", None), ("left", "static")], ids=str
)
@pytest.mark.parametrize("kind", DECODERS)
def test_generated_tokens_equal_eager(kind: str, padding: str, cache: str | None) -> None:
    model = make_model(kind)
    batch = make_batch(padding)
    options: dict[str, Any] = dict(
        max_new_tokens=9,
        min_new_tokens=9,
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


@pytest.mark.parametrize("kind", ["llama-gqa", "mistral-window"])
def test_packed_sequences_do_not_see_each_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their offsets come from the positions, or from DataCollatorWithFlattening."""
    dense: list[torch.Tensor] = []
    monkeypatch.setattr(integration, "flash_attn_func", lambda *args, **_: dense.append(args[0]))
    model = make_model(kind)
    ids = make_batch("none")["input_ids"][:1]
    lengths = 3, 11, 5
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    starts = torch.tensor([0, 3, 14, 19])
    collated = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=11, max_length_k=11)
    found = [run(model, integration.NAME, **inputs, **more) for more in ({}, collated)]
    assert not dense
    parts = [run(model, "eager", input_ids=x, use_cache=False) for x in ids.split(lengths, 1)]
    for logits in found:
        torch.testing.assert_close(logits, torch.cat(parts, 1))


@pytest.mark.parametrize("kind", ["gpt-oss-sinks", "gemma2-softcap", "modernbert-two-windows"])
def test_gradients_match_eager(kind: str) -> None:
    model = make_model(kind)
    batch = make_batch("left")
    gradients = []
    for implementation in ("eager", integration.NAME):
        model.zero_grad()
        model.set_attn_implementation(implementation)
        output = model(**batch)[0][batch["attention_mask"].bool()]
        output.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
def test_an_encoder_and_decoder_generate_eagers_tokens(cache: str | None) -> None:
    model, sounds = make_model("whisper"), torch.randn(3, 8, 40)
    options: dict[str, Any] = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    tokens = []
    for implementation in ("eager", integration.NAME):
        model.set_attn_implementation(implementation)
        # Whisper's own generate() wants a tokenizer's special tokens.
        tokens.append(
            GenerationMixin.generate(
                model,
                input_features=sounds,
                cache_implementation=cache,
                disable_compile=True,
                **options,
            )
        )
    assert torch.equal(*tokens)


def test_compiles_to_one_graph() -> None:
    model = make_model("llama-gqa")
    model.set_attn_implementation(integration.NAME)
    ids = make_batch("none")["input_ids"]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected)


def test_attention_weights_are_refused_by_name() -> None:
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(NotImplementedError, match=integration.NAME):
        integration.attention(torch.nn.Module(), q, q, q, None, output_attentions=True)


def test_tokens_after_a_static_cache_compile_once() -> None:
    """Neither padding nor the growing length makes another graph or breaks one."""
    model, batch = make_model("llama-gqa"), make_batch("left")
    options: dict[str, Any] = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False)
    expected = model.generate(**batch, **options)
    model.set_attn_implementation(integration.NAME)
    compiling = CompileConfig(backend="aot_eager", fullgraph=True, dynamic=False, mode=None)
    compiling._compile_all_devices = True
    counters.clear()
    tokens = model.generate(
        **batch, **options, cache_implementation="static", compile_config=compiling
    )
    assert torch.equal(tokens, expected)
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("name", [integration.NAME, integration.FLASH_NAME])
def test_unregister_takes_the_names_back(name: str) -> None:
    check = PreTrainedModel._check_and_adjust_attn_implementation
    integration.register()  # a second time changes nothing
    assert PreTrainedModel._check_and_adjust_attn_implementation is check
    integration.unregister()
    integration.unregister()
    assert PreTrainedModel._check_and_adjust_attn_implementation is CHECK
    assert name not in AttentionInterface()
    assert name not in AttentionMaskInterface()
    with pytest.raises(ValueError, match=name):
        make_model("llama-gqa").set_attn_implementation(name)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("kind", ["mistral-window", "gemma2-softcap", "gpt-oss-sinks", "bert"])
def test_flash_style_name_gives_the_same_bits(kind: str, padding: str) -> None:
    model, batch = make_model(kind), make_batch(padding)
    names = integration.NAME, integration.FLASH_NAME
    plain, flash = (run(model, name, **batch) for name in names)
    assert torch.equal(plain, flash)
    assert model.config._attn_implementation == integration.FLASH_NAME


def test_flash_style_name_generates_a_batch_of_requests() -> None:
    """Sinks, softcaps and windows: models that cannot use sdpa."""
    options = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=-1)
    if Version(transformers.__version__) < Version("5.20"):
        model = make_model("llama-gqa")
        model.set_attn_implementation(integration.FLASH_NAME)
        with pytest.raises(NotImplementedError, match="5.20"):
            model.generate_batch([[5, 6, 7]], options)
        return
    pages = ContinuousBatchingConfig(page_size=16, num_blocks=32, max_batch_tokens=64)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [14], [15, 16, 17]]
    for kind in ("gpt-oss-sinks", "gemma2-softcap"):
        model = make_model(kind)
        model.set_attn_implementation("eager")  # some versions let Gemma 2 drop its softcap in sdpa
        expected = [
            model.generate(torch.tensor([x]), generation_config=options)[0, len(x) :].tolist()
            for x in prompts
        ]
        model.set_attn_implementation(integration.FLASH_NAME)
        found = model.generate_batch(
            prompts, options, continuous_batching_config=pages, progress_bar=False
        )
        assert sorted(x.generated_tokens for x in found.values()) == sorted(expected)


def test_flash_style_name_is_refused_where_transformers_has_no_flash() -> None:
    with pytest.raises(ValueError, match=integration.NAME):
        make_model("t5-position-bias").set_attn_implementation(integration.FLASH_NAME)


@pytest.mark.parametrize("name", [integration.NAME, integration.FLASH_NAME])
@pytest.mark.parametrize("kind", ["Bloom", "CodeGen", "Falcon", "GPTJ", "Mpt"])
def test_a_model_without_the_attention_interface_is_refused(kind: str, name: str) -> None:
    """It would run its own attention, or fail at the first forward."""
    config = getattr(transformers, f"{kind}Config")(vocab_size=97)
    refused = pytest.raises(ValueError, match=f"{name}: {kind}.* does not use transformers' att")
    with torch.device("meta"), refused:
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation=name)
