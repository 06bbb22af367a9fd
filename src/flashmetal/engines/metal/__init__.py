"""The engine that runs our own Metal kernels."""

from .forward import forward, refuse, refuse_backward
from .gpu import Gpu
from .runtime import Runtime, metal_runtime

__all__ = ["Gpu", "Runtime", "forward", "metal_runtime", "refuse", "refuse_backward"]
