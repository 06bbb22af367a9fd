"""The engine that runs our own Metal kernels."""

from .append import append, refuse_append
from .backward import backward, refuse_backward
from .forward import forward, refuse
from .gpu import Gpu
from .kernel_choice import kernels_for, refuse_kernel
from .runtime import Runtime, metal_runtime
from .tile_choice import tiles_of
from .trust import SetAside, Trust

__all__ = [
    "Gpu",
    "Runtime",
    "SetAside",
    "Trust",
    "append",
    "backward",
    "forward",
    "kernels_for",
    "metal_runtime",
    "refuse",
    "refuse_append",
    "refuse_backward",
    "refuse_kernel",
    "tiles_of",
]
