"""Tiny random models of every kind of attention transformers has, and what their logits may err."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask

VOCABULARY = 97
WINDOW = 7
EOS = 96  # CLIP reads its text where this stands
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=128,
)
ENCODER: dict[str, Any] = {k: SIZES[k] for k in SIZES if k != "max_position_embeddings"}
PATCHES: dict[str, Any] = dict(image_size=24, patch_size=8)
# All experts are picked, so that routing never flips on a rounding.
EXPERTS: dict[str, Any] = dict(num_local_experts=2, num_experts_per_tok=2)
TWO_KINDS_OF_LAYERS = ["sliding_attention", "full_attention"]


class Kind(NamedTuple):
    """A model class and its configuration's by their names, and what the configuration gets."""

    model: str
    config: str
    options: dict[str, Any]


def _decoder(name: str, **options: Any) -> Kind:
    tokens = dict(pad_token_id=0, bos_token_id=1, eos_token_id=EOS)
    return Kind(f"{name}ForCausalLM", f"{name}Config", SIZES | tokens | options)


DECODERS = {
    "llama-gqa": _decoder("Llama", num_key_value_heads=2),
    "mistral-window": _decoder("Mistral", num_key_value_heads=1, sliding_window=WINDOW),
    "qwen2-bias": _decoder("Qwen2", num_key_value_heads=2),
    "qwen3-norms": _decoder("Qwen3", num_key_value_heads=2, head_dim=24),
    "gemma2-softcap": _decoder(
        "Gemma2",
        num_key_value_heads=2,
        head_dim=24,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=16,
    ),
    "gemma3-two-windows": Kind(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        SIZES
        | dict(pad_token_id=0, bos_token_id=1, eos_token_id=EOS)
        | dict(num_key_value_heads=2, head_dim=24, sliding_window=WINDOW)
        | dict(query_pre_attn_scalar=16, layer_types=TWO_KINDS_OF_LAYERS),
    ),
    "gemma4-shared-keys": Kind(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        SIZES
        | dict(pad_token_id=0, bos_token_id=1, eos_token_id=EOS)
        | dict(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=TWO_KINDS_OF_LAYERS * 2)
        | dict(num_key_value_heads=2, head_dim=16, global_head_dim=24, sliding_window=WINDOW)
        | dict(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8),
    ),
    "gpt-oss-sinks": _decoder(
        "GptOss", num_key_value_heads=2, head_dim=16, sliding_window=WINDOW, **EXPERTS
    ),
    "gpt2": Kind(
        "GPT2LMHeadModel",
        "GPT2Config",
        dict(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128)
        | dict(pad_token_id=0, bos_token_id=1, eos_token_id=EOS),
    ),
}
ENCODERS = {
    "bert": Kind("BertModel", "BertConfig", SIZES),
    "modernbert-two-windows": Kind(
        "ModernBertModel",
        "ModernBertConfig",
        SIZES
        | dict(pad_token_id=0, local_attention=2 * WINDOW, layer_types=TWO_KINDS_OF_LAYERS)
        | dict(reference_compile=False),
    ),
    "privacy-filter-sinks": Kind(
        "OpenAIPrivacyFilterForTokenClassification",
        "OpenAIPrivacyFilterConfig",
        SIZES
        | EXPERTS
        | dict(num_key_value_heads=2, head_dim=16, sliding_window=WINDOW, pad_token_id=0),
    ),
    "t5-position-bias": Kind(
        "T5EncoderModel",
        "T5Config",
        dict(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4),
    ),
}
OTHERS = {
    "vit": Kind("ViTModel", "ViTConfig", ENCODER | PATCHES),
    "clip": Kind(
        "CLIPModel",
        "CLIPConfig",
        dict(
            text_config=SIZES | dict(eos_token_id=EOS),
            vision_config={k: ENCODER[k] for k in ENCODER if k != "vocab_size"} | PATCHES,
            projection_dim=32,
        ),
    ),
    "whisper": Kind(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        dict(vocab_size=VOCABULARY, d_model=64, num_mel_bins=8, max_source_positions=20)
        | dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=96, decoder_ffn_dim=96)
        | dict(encoder_attention_heads=4, decoder_attention_heads=4, pad_token_id=0)
        | dict(bos_token_id=1, eos_token_id=EOS, decoder_start_token_id=1)
        | dict(suppress_tokens=None, begin_suppress_tokens=None),
    ),
}
KINDS = DECODERS | ENCODERS | OTHERS
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PADDINGS = ("none", "left", "right")


def make_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model with scores and sinks large enough for each feature to change the logits."""
    model_class, config_class, options = KINDS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**options))
    if "num_local_experts" in options:
        model.set_experts_implementation("eager")  # the default one has no float64
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "query", "Wqkv", "c_attn")):
                parameter.mul_(8)
            if "sinks" in name:
                parameter.normal_()
    return model.eval().to(dtype)


def make_batch(padding: str, length: int = 19) -> dict[str, torch.Tensor]:
    """Three sequences of tokens, and which of them are real."""
    torch.manual_seed(1)
    ids = torch.randint(3, EOS, (3, length))
    real = torch.ones_like(ids)
    for row, missing in enumerate((0, 5, 12)):
        if padding == "left":
            real[row, :missing] = 0
        if padding == "right":
            real[row, length - missing :] = 0
        ids[row, -1 - (missing if padding == "right" else 0)] = EOS
    return {"input_ids": ids, "attention_mask": real}


def make_inputs(kind: str, dtype: torch.dtype, padding: str = "none") -> dict[str, torch.Tensor]:
    """What the model's forward takes."""
    images = {"pixel_values": torch.randn(3, 3, 24, 24, dtype=dtype)}
    batch = make_batch(padding)
    if kind == "vit":
        return images
    if kind == "clip":
        return images | batch
    if kind == "whisper":
        sounds = torch.randn(3, 8, 40, dtype=dtype)
        names = "decoder_input_ids", "decoder_attention_mask"
        return {"input_features": sounds} | dict(zip(names, batch.values(), strict=True))
    return batch


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


def run(model: PreTrainedModel, implementation: str, **inputs: Any) -> torch.Tensor:
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs)[0]


def assert_within_eager_error(
    model: PreTrainedModel, name: str, inputs: dict[str, Any], real: Any = ...
) -> None:
    """Our error against a float64 run is at most twice the sum of eager's and one rounding."""
    dtype = model.dtype
    doubled = {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
    ours, eager = (run(model, i, **inputs)[real] for i in (name, "eager"))
    exact = run(model.double(), EXACT, **doubled)[real]
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    budget = 2 * ((eager.double() - exact).abs().max() + rounding)
    error = (ours.double() - exact).abs().max()
    assert error <= budget, f"error {error:.3e}, budget {budget:.3e}"
