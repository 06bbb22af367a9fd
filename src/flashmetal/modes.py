"""What torch is doing around a call, where it has no public question for that."""

from __future__ import annotations

from typing import Any

import torch

_core: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_dispatch_modes = _core._len_torch_dispatch_stack
_function_transform = _core._functorch.maybe_current_level
_is_profiled = _core._autograd._profiler_enabled


def is_function_transform() -> bool:
    """Whether a transform of torch.func is running."""
    return _function_transform() is not None


def is_plain() -> bool:
    """Whether tensors are what they seem: no tracing, dispatch mode or function transform."""
    return (
        not torch.compiler.is_compiling() and _dispatch_modes() == 0 and not is_function_transform()
    )


def is_profiled() -> bool:
    """Whether a profiler records operators."""
    return bool(_is_profiled())
