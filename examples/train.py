"""Fine-tune SmolLM2-135M on packed text with flashmetal, then with eager attention, and compare.

    make train    # or: python examples/train.py [--steps 24] [--batches 6] [--tokens 192]

The text is this project's own documents, cut into paragraphs and packed one after the other without
padding: flashmetal attends within each by ``cu_seqlens``, eager by a mask. The losses of every
token of the first steps are held against a run in float64. Exits with 1 when they disagree.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from demo import console, cores, load_language_model, measure, progress, verdict
from matplotlib.figure import Figure
from rich.table import Table

from flashmetal.integrations import transformers as integration
from flashmetal.testing import error_budget

DOCUMENTS = ("LICENSE", "DESIGN.md", "CONTRIBUTING.md", "README.md")
LEAST_TOKENS = 8  # shorter paragraphs are headings


class Batch(NamedTuple):
    """Paragraphs one after the other: tokens and their positions (1, total), offsets (B + 1,)."""

    tokens: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor


class Run(NamedTuple):
    """Of each step: the losses of its tokens, the peak MB above its start, the seconds."""

    losses: list[torch.Tensor]
    megabytes: list[float]
    seconds: list[float]

    def curve(self) -> list[float]:
        return [float(x.mean()) for x in self.losses]


def paragraphs(tokenizer: Any) -> Iterator[list[int]]:
    """The paragraphs of the documents as tokens, over and over."""
    folder = Path(__file__).parents[1]
    texts = [part for name in DOCUMENTS for part in (folder / name).read_text().split("\n\n")]
    found = [ids for ids in (tokenizer(x)["input_ids"] for x in texts) if len(ids) > LEAST_TOKENS]
    while True:
        yield from found


def batches(tokenizer: Any, steps: int, tokens: int) -> list[Batch]:
    """``steps`` batches of exactly ``tokens`` tokens; the last paragraph of each is cut."""
    source, made = paragraphs(tokenizer), list[Batch]()
    for _ in range(steps):
        packed: list[list[int]] = []
        while (left := tokens - sum(map(len, packed))) > 0:
            packed.append(next(source)[:left])
        lengths = torch.tensor([0, *map(len, packed)], dtype=torch.int32)
        positions = torch.cat([torch.arange(len(x)) for x in packed])
        tokens_in_order = torch.tensor([[token for part in packed for token in part]])
        starts = lengths.cumsum(0, dtype=torch.int32)
        made.append(Batch(tokens_in_order, positions[None], starts))
    return made


def token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The loss of each token that has a predecessor in its own paragraph."""
    longest = int(batch.starts.diff().max())
    logits = model(
        batch.tokens,
        position_ids=batch.positions,
        use_cache=False,
        cu_seq_lens_q=batch.starts,
        cu_seq_lens_k=batch.starts,
        max_length_q=longest,
        max_length_k=longest,
    ).logits[0]
    inside = batch.positions[0, 1:] > 0
    return torch.nn.functional.cross_entropy(
        logits[:-1][inside], batch.tokens[0, 1:][inside], reduction="none"
    )


def train(
    model: Any, implementation: str, data: list[Batch], label: str, rate: float = 1e-3
) -> Run:
    """One optimizer step a batch; the model is left trained."""
    model.set_attn_implementation(implementation)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    run = Run([], [], [])
    with progress(f"Training, {label}", len(data)) as step:
        for batch in data:
            start = time.perf_counter()
            with measure() as measured:
                losses = token_losses(model, batch)
                losses.mean().backward()
                optimizer.step()
                optimizer.zero_grad()
            run.losses.append(losses.detach())
            run.megabytes.append(measured.peak)
            run.seconds.append(time.perf_counter() - start)
            step()
    return run


def plot(path: Path, runs: dict[str, Run]) -> None:
    """Loss and peak memory by step."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, memory = figure.subplots(1, 2)
    for style, (name, run) in zip(("-", "--"), runs.items(), strict=True):
        loss.plot(run.curve(), style, label=name)
        memory.plot(run.megabytes, style, label=name)
    loss.set(xlabel="step", ylabel="loss", title="SmolLM2-135M, float32")
    memory.set(xlabel="step", ylabel="peak MB above the step's start", title=cores())
    loss.legend()
    figure.savefig(path, dpi=120)


def report(runs: dict[str, Run]) -> None:
    table = Table("attention", "first loss", "last loss", "seconds a step", "peak MB of a step")
    for name, run in runs.items():
        curve, seconds = run.curve(), sorted(run.seconds)[len(run.seconds) // 2]
        memory = max(run.megabytes[1:], default=0.0)
        table.add_row(
            name, f"{curve[0]:.4f}", f"{curve[-1]:.4f}", f"{seconds:.2f}", f"{memory:.0f}"
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batches", type=int, default=6, help="that the steps go through in turn")
    parser.add_argument("--tokens", type=int, default=192, help="tokens of a step, all paragraphs")
    parser.add_argument("--checked", type=int, default=3, help="steps run in float64 too")
    parser.add_argument("--plot", type=Path, default=Path("train.png"))
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    integration.register()
    model, tokenizer = load_language_model()
    start = {name: x.clone() for name, x in model.state_dict().items()}
    data = batches(tokenizer, options.batches, options.tokens)
    data = list(itertools.islice(itertools.cycle(data), options.steps))
    runs: dict[str, Run] = {}
    # Ours goes first: memory that eager has freed, but kept, would hide our own peak.
    for label, implementation in (("flashmetal", integration.NAME), ("eager", "eager")):
        model.load_state_dict(start)
        runs[label] = train(model, implementation, data, label)
    model.load_state_dict(start)
    exact = train(model.double(), "eager", data[: options.checked], "eager in float64")
    report(runs)
    plot(options.plot, runs)
    losses = {name: torch.cat(run.losses[: options.checked]) for name, run in runs.items()}
    right = torch.cat(exact.losses)
    budget = error_budget(losses["eager"], right)
    error = float((losses["flashmetal"] - right).abs().max())
    ours, eager = (torch.tensor(run.curve()) for run in runs.values())
    turn = min(options.batches, len(ours) // 2)
    learns = bool(ours[-turn:].mean() < ours[:turn].mean())
    console.print(f"Largest difference of the two curves: {float((ours - eager).abs().max()):.1e}")
    console.print(verdict(learns, "the loss falls"))
    text = f"largest error of a token's loss {error:.1e}, budget {budget:.1e}"
    console.print(verdict(error <= budget, text))
    console.print(f"Plot: {options.plot}")
    return 0 if learns and error <= budget else 1


if __name__ == "__main__":
    sys.exit(main())
