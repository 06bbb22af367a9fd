"""What each format of a cache costs in error and bytes, on the activations of a real model.

SmolLM2-135M reads this project's licence and design with its keys and values quantised as a cache
would hold them. Errors are of every layer's attention beside the same call on the unquantised
keys, then of the model's next tokens. Nothing is timed: any machine gives these figures.

    make demo && .venv/bin/python benchmarks/cache_formats.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from report import write_results
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from demo import load_language_model  # noqa: E402

import flashmetal  # noqa: E402
from flashmetal.cache.formats import dequantise, quantise  # noqa: E402

PAIRS = (
    ("dense", "dense"),
    ("int8", "int8"),
    ("fp8", "fp8"),
    ("int8", "int4"),
    ("fp8", "int4"),
    ("int4", "int4"),
)
NAME = "cache_formats"


class Probe:
    """An attention that quantises keys and values first, and keeps what that costs."""

    def __init__(self, formats: tuple[str, str]) -> None:
        self.formats = formats
        self.relative: list[float] = []  # root mean square error of each layer's output, relative
        self.largest = 0.0

    def __call__(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        exact = flashmetal.flash_attn_func(q, k, v, softmax_scale=scaling, causal=True)
        stored = [
            dequantise(*quantise(x, cache_format), x.dtype)
            for x, cache_format in zip((k, v), self.formats, strict=True)
        ]
        out = flashmetal.flash_attn_func(q, *stored, softmax_scale=scaling, causal=True)
        error = (out - exact).double()
        self.relative.append(float(error.square().mean().sqrt() / exact.square().mean().sqrt()))
        self.largest = max(self.largest, float(error.abs().max()))
        return out, None


def text_of_this_project(tokens: int, tokenizer: Any) -> Tensor:
    text = "".join((ROOT / name).read_text() for name in ("DESIGN.md", "LICENSE"))
    return tokenizer(text, return_tensors="pt")["input_ids"][:, :tokens]


def run(model: Any, ids: Tensor, formats: tuple[str, str]) -> tuple[Probe, Tensor]:
    """The probe after one pass, and the log-probabilities (S, vocabulary) of next tokens."""
    probe = Probe(formats)
    transformers.AttentionInterface.register(NAME, probe)
    transformers.AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0]
    return probe, logits.double().log_softmax(-1)


def bytes_per_token(model: Any, formats: tuple[str, str]) -> int:
    """Of all layers, for a cache that is bfloat16 where it is dense."""
    config = model.config
    dim = config.hidden_size // config.num_attention_heads
    row = torch.zeros(1, config.num_key_value_heads, dim, dtype=torch.bfloat16)
    parts = [x for name in formats for x in quantise(row, name) if x is not None]
    return config.num_hidden_layers * sum(x.nbytes for x in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    model, tokenizer = load_language_model()
    ids = text_of_this_project(options.tokens, tokenizer)
    rows: list[dict[str, Any]] = []
    exact = run(model, ids, PAIRS[0])[1]
    for formats in PAIRS:
        probe, logs = run(model, ids, formats)
        divergence = (exact.exp() * (exact - logs)).sum(-1)
        rows.append(
            {
                "keys": formats[0],
                "values": formats[1],
                "bytes_per_token": bytes_per_token(model, formats),
                "relative_rms_error_mean": sum(probe.relative) / len(probe.relative),
                "relative_rms_error_worst_layer": max(probe.relative),
                "largest_error": probe.largest,
                "next_token_divergence_nats": float(divergence.mean()),
                "same_next_token": float((exact.argmax(-1) == logs.argmax(-1)).double().mean()),
            }
        )
    table = Table(*rows[0], title=f"SmolLM2-135M, {ids.shape[1]} tokens of this project's text")
    for row in rows:
        table.add_row(*(f"{x:.2e}" if isinstance(x, float) else str(x) for x in row.values()))
    Console(width=160).print(table)
    facts = {"model": "SmolLM2-135M", "tokens": ids.shape[1], "rows": rows}
    write_results(options.results, NAME, facts)


if __name__ == "__main__":
    main()
