"""Tiny random models of the attention kinds in use, through flashmetal and through eager."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

from flashmetal.integrations import transformers as integration

SIZES: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
)
WINDOW = 7
DECODERS: dict[str, Any] = {
    "llama-gqa": (LlamaForCausalLM, LlamaConfig, dict(num_key_value_heads=2)),
    "mistral-window": (
        MistralForCausalLM,
        MistralConfig,
        dict(num_key_value_heads=1, sliding_window=WINDOW),
    ),
    "gemma2-softcap": (
        Gemma2ForCausalLM,
        Gemma2Config,
        dict(
            num_key_value_heads=2,
            head_dim=24,
            sliding_window=WINDOW,
            attn_logit_softcapping=2.0,
            query_pre_attn_scalar=16,
        ),
    ),
    "gpt-oss-sinks": (
        GptOssForCausalLM,
        GptOssConfig,
        dict(
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=WINDOW,
            num_local_experts=2,
            num_experts_per_tok=2,  # all of them: routing never flips on a rounding
        ),
    ),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PADDINGS = ("none", "left", "right")


EXACT = "exact_attention"


def exact_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the inputs' dtype throughout; the models' own has its softmax in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    sinks = torch.full(scores.shape[:-1], -torch.inf, dtype=scores.dtype)
    if s_aux is not None:
        sinks = s_aux[None, :, None].expand_as(sinks)
    weights = torch.cat([scores, sinks[..., None]], -1).softmax(-1)[..., :-1].nan_to_num(0.0)
    return (weights @ value).transpose(1, 2).contiguous(), None


def exact_mask(**kwargs: Any) -> torch.Tensor | None:
    return sdpa_mask(**{**kwargs, "allow_is_causal_skip": False})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    AttentionInterface.register(EXACT, exact_attention)
    AttentionMaskInterface.register(EXACT, exact_mask)
    integration.register()
    yield
    integration.unregister()


def make_decoder(kind: str, dtype: torch.dtype) -> PreTrainedModel:
    """A random model with scores and sinks large enough for each feature to change the logits."""
    model_class, config_class, extra = DECODERS[kind]
    torch.manual_seed(0)
    config = config_class(**SIZES, **extra, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = model_class(config).eval()
    if kind == "gpt-oss-sinks":
        model.set_experts_implementation("eager")  # the default one has no float64
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(8)
            if "sinks" in name:
                parameter.normal_()
    return model.to(dtype)


def make_batch(padding: str, length: int = 19) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, SIZES["vocab_size"], (3, length))
    real = torch.ones_like(ids)
    for row, missing in enumerate((0, 5, 12)):
        if padding == "left":
            real[row, :missing] = 0
        if padding == "right":
            real[row, length - missing :] = 0
    return {"input_ids": ids, "attention_mask": real}


def run(model: PreTrainedModel, implementation: str, **inputs: Any) -> torch.Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs)[0]


def assert_within_eager_error(model: PreTrainedModel, inputs: dict[str, Any]) -> None:
    """Our error against a float64 run is at most twice the sum of eager's and one rounding."""
    dtype = model.dtype
    real = inputs["attention_mask"].bool()
    ours = run(model, integration.NAME, **inputs)[real]
    eager = run(model, "eager", **inputs)[real]
    exact = run(model.double(), EXACT, **inputs)[real]
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    budget = 2 * ((eager.double() - exact).abs().max() + rounding)
    error = (ours.double() - exact).abs().max()
    assert error <= budget, f"error {error:.3e}, budget {budget:.3e}"


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", DECODERS)
def test_prefill_logits_match_eager(kind: str, dtype: str, padding: str) -> None:
    assert_within_eager_error(make_decoder(kind, DTYPES[dtype]), make_batch(padding))


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("kind", DECODERS)
def test_generated_tokens_equal_eager(kind: str, padding: str, cache: str | None) -> None:
    model = make_decoder(kind, torch.float32)
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
    model = make_decoder("mistral-window", torch.float32)
    ids = make_batch("none")["input_ids"]
    model.set_attn_implementation(integration.NAME)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :10], use_cache=True)
        second = model(ids[:, 10:], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, whole[:, 10:])


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder_matches_eager(dtype: str, padding: str) -> None:
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)).eval().to(DTYPES[dtype])
    assert_within_eager_error(model, make_batch(padding))


def test_learned_position_bias_matches_eager() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=97, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    model = T5EncoderModel(config).eval()
    assert_within_eager_error(model, make_batch("right"))


def test_packed_sequences_do_not_see_each_other() -> None:
    model = make_decoder("llama-gqa", torch.float32)
    ids = make_batch("none")["input_ids"][:1]
    positions = torch.cat([torch.arange(8), torch.arange(11)])[None]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    ours = run(model, integration.NAME, **inputs)
    alone = run(model, integration.NAME, input_ids=ids[:, 8:], use_cache=False)
    torch.testing.assert_close(ours[:, 8:], alone)


def test_gradients_match_eager() -> None:
    model = make_decoder("gpt-oss-sinks", torch.float32)
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
    model = make_decoder("llama-gqa", torch.float32)
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
        make_decoder("llama-gqa", torch.float32).set_attn_implementation(integration.NAME)
