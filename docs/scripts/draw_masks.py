"""Draws docs/pictures/masks.png: which keys each query sees, as flashmetal's reference computes it.

`python docs/scripts/draw_masks.py`. Nothing is drawn from a formula: v is the identity, so that row
i of the output is row i of the probabilities, and a key is seen where its probability is not 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashmetal import flash_attn_func, flash_attn_varlen_func

PICTURE = Path(__file__).parents[1] / "pictures" / "masks.png"
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "full": (8, 8, {}),
    "causal": (8, 8, {"causal": True}),
    "causal, 4 queries of 8 keys": (4, 8, {"causal": True}),
    "causal, 8 queries of 4 keys": (8, 4, {"causal": True}),
    "window (2, 0)": (8, 8, {"window_size": (2, 0)}),
    "window (1, 2)": (8, 8, {"window_size": (1, 2)}),
    "leftpad_k 3, causal": (8, 8, {"causal": True, "leftpad_k": 3}),
    "seqused_k 5, causal": (8, 8, {"causal": True, "seqused_k": 5}),
    "packed 3 + 5, causal": (8, 8, {"causal": True, "packed": (3, 5)}),
}


def visible(queries: int, keys: int, options: dict[str, Any]) -> Tensor:
    """Which keys each query sees: (queries, keys) bool."""
    q, k = (torch.zeros(1, length, 1, keys) for length in (queries, keys))
    v = torch.eye(keys)[None, :, None]
    given: dict[str, Any] = {
        name: torch.tensor([value], dtype=torch.int32) if name.endswith("_k") else value
        for name, value in options.items()
    }
    packed = given.pop("packed", None)
    if packed is None:
        return flash_attn_func(q, k, v, **given, impl="reference")[0, :, 0] > 0
    starts = torch.tensor([0, *packed], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    lengths = starts, starts, max(packed), max(packed)
    rows = flash_attn_varlen_func(q[0], k[0], v[0], *lengths, **given, impl="reference")
    return rows[:, 0] > 0


def main() -> None:
    """Draw all cases."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 3, figsize=(8, 8.6), layout="constrained")
    for axis, (title, case) in zip(axes.flat, CASES.items(), strict=True):
        axis.pcolormesh(visible(*case).flip(0), cmap="Blues", vmin=0, vmax=1.4, edgecolor="white")
        axis.set(title=title, xlabel="key", ylabel="query", xticks=[], yticks=[], aspect="equal")
    figure.savefig(PICTURE, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
