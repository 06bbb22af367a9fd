"""The engine that runs our own Metal kernels."""

from .forward import forward, refuse
from .gpu import Gpu
from .runtime import Runtime, metal_runtime

__all__ = ["Gpu", "Runtime", "forward", "metal_runtime", "refuse"]
