"""The engine that runs our own Metal kernels."""

from .backward import backward, refuse_backward
from .forward import forward, kernel_for, refuse, refuse_kernel
from .gpu import Gpu
from .runtime import Runtime, metal_runtime

__all__ = [
    "Gpu",
    "Runtime",
    "backward",
    "forward",
    "kernel_for",
    "metal_runtime",
    "refuse",
    "refuse_backward",
    "refuse_kernel",
]
