"""generate_batch and generate on flashmetal give eager's tokens, for many uneven requests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.generation import ContinuousBatchingConfig

from flashmetal.integrations import continuous_batching as integration
from flashmetal.integrations import transformers as plain

GREEDY = transformers.GenerationConfig(
    max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1
)
PAGES = ContinuousBatchingConfig(
    page_size=16, num_blocks=64, max_batch_tokens=96, auto_switch_to_flash=False
)


def tiny_model(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    config = transformers.MistralConfig(**sizes, **{"sliding_window": None, **changes})
    return transformers.MistralForCausalLM(config).eval()


def prompts(count: int, longest: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, 97, (n,), generator=generator).tolist() for n in lengths]


def eager_answers(model: Any, inputs: list[list[int]], **options: Any) -> list[list[int]]:
    model.set_attn_implementation("eager")
    return [
        model.generate(torch.tensor([x]), generation_config=GREEDY, **options)[0, len(x) :].tolist()
        for x in inputs
    ]


def batched_answers(model: Any, inputs: list[list[int]]) -> list[list[int]]:
    with integration.continuous_batching(model):
        outputs = model.generate_batch(
            inputs, GREEDY, continuous_batching_config=PAGES, progress_bar=False
        )
    by_number = sorted(outputs.values(), key=lambda o: int(o.request_id.rpartition("_")[2]))
    return [output.generated_tokens for output in by_number]


def test_32_uneven_requests_give_eagers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[torch.Tensor] = []
    original = integration._block_table

    def spy(*arguments: Any) -> torch.Tensor:
        tables.append(original(*arguments))
        return tables[-1]

    monkeypatch.setattr(integration, "_block_table", spy)
    model, inputs = tiny_model(), prompts(32, 60)
    assert batched_answers(model, inputs) == eager_answers(model, inputs)
    assert max(table.shape[0] for table in tables) > 8  # many decodes shared one call
    assert model.config._attn_implementation == "eager"


def test_sliding_layers_are_read_back() -> None:
    model, inputs = tiny_model(sliding_window=8), prompts(6, 30)
    assert batched_answers(model, inputs) == eager_answers(model, inputs)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_on_a_padded_batch(cache: str) -> None:
    model, inputs = tiny_model(), prompts(8, 30)
    expected = eager_answers(model, inputs)
    width = max(map(len, inputs))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in inputs])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in inputs])
    plain.register()
    model.set_attn_implementation(plain.NAME)
    out = model.generate(
        ids, attention_mask=mask, generation_config=GREEDY, cache_implementation=cache
    )
    assert out[:, width:].tolist() == expected


def test_a_plain_call_within_it_is_refused() -> None:
    model = tiny_model()
    with (
        integration.continuous_batching(model),
        pytest.raises(NotImplementedError, match="only generate_batch"),
    ):
        model(torch.tensor([[1, 2, 3]]))
