"""The model of docs/distributed.md gives each rank its rows of what one process computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flashmetal.distributed import flash_attn_func, local_rows
from flashmetal.testing import error_budget

from .processes import Processes

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 17}


def logits_of_a_rank(rank: int, code: str) -> tuple[torch.Tensor, ...]:
    """This rank's logits, those of one process, and those in float64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    del rank
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, intermediate_size=32, num_hidden_layers=2)
    model, tokens = LlamaForCausalLM(config), torch.randint(17, (1, 40))
    model.set_attn_implementation("eager")
    eager, exact = model(tokens).logits, model.double()(tokens).logits
    given: dict[str, Any] = {"local_rows": local_rows, "flash_attn_func": flash_attn_func}
    given |= {"model": model.float(), "tokens": tokens}
    exec(code, given)
    rows = given["rows"]
    return tuple(x.detach() for x in (given["logits"], eager[:, rows], exact[:, rows]))


@pytest.mark.long
def test_a_model_of_transformers(processes: Processes) -> None:
    code = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    for logits, eager, exact in processes.run(logits_of_a_rank, code):
        assert float((logits - exact).abs().max()) <= error_budget(eager, exact)
