"""The engine that runs our own Metal kernels."""

from .append import append, refuse_append
from .backward import backward, refuse_backward
from .forward import forward, kernel_for, refuse, refuse_kernel
from .gpu import Gpu
from .runtime import Runtime, metal_runtime

__all__ = [
    "Gpu",
    "Runtime",
    "append",
    "backward",
    "forward",
    "kernel_for",
    "metal_runtime",
    "refuse",
    "refuse_append",
    "refuse_backward",
    "refuse_kernel",
]
