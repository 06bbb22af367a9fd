"""The engine that runs our own Metal kernels."""

from .backward import backward, refuse_backward
from .forward import forward, refuse
from .gpu import Gpu
from .runtime import Runtime, metal_runtime

__all__ = [
    "Gpu",
    "Runtime",
    "backward",
    "forward",
    "metal_runtime",
    "refuse",
    "refuse_backward",
]
