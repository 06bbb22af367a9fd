"""A paged cache as a safetensors file: the pages in use, and the sequences as JSON beside them."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

_VERSION = "1"


def save(
    path: str | PathLike[str],
    shape: dict[str, Any],
    state: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    """Write the tensors (layers, pages in use, ...) with the cache's shape and its sequences."""
    described = shape | {"dtype": str(shape["dtype"]).removeprefix("torch.")}
    metadata = {
        "flashmetal_cache": _VERSION,
        "shape": json.dumps(described),
        "state": json.dumps(state),
    }
    module: Any = safetensors_torch  # its types are partial
    module.save_file({name: x.contiguous().cpu() for name, x in tensors.items()}, path, metadata)


def load(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """The shape, the state and the tensors that :func:`save` wrote, or ValueError."""
    opened: Any = safe_open  # its types are partial
    metadata: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    try:
        with opened(path, framework="pt") as file:
            metadata |= file.metadata() or {}
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"PagedKVCache.load: {path} is no safetensors file: {error}") from error
    if metadata.get("flashmetal_cache") != _VERSION:
        raise ValueError(
            f"PagedKVCache.load: {path} holds no paged cache of version {_VERSION}; write it with "
            "PagedKVCache.save"
        )
    described = json.loads(metadata["shape"])
    described["dtype"] = getattr(torch, described["dtype"])
    return described, json.loads(metadata["state"]), tensors
