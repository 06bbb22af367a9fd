"""What torch operations do inside of a block, counted instead of timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = {
    torch.ops.aten.bmm.default,
    torch.ops.aten.bmm.out,
    torch.ops.aten.baddbmm_.default,
}

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Operations(TorchDispatchMode):
    """Counts of elements, and of exponentials taken."""

    largest = 0  # of the largest tensor that an operation made; views are none
    scores = 0  # that products wrote where they were told to
    read = 0  # of the right operands of products: keys and values as they are read
    products = 0
    fused = 0  # calls of torch's fused kernel
    exponentials = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = result if isinstance(result, (tuple, list)) else (result,)
            sizes = [x.numel() for x in made if isinstance(x, Tensor)]
            self.largest = max([self.largest, *sizes])
        self.exponentials += func is torch.ops.aten.exp2_.default
        self.products += func in _PRODUCTS
        self.fused += func is _FUSED
        if func is torch.ops.aten.bmm.out:
            self.scores += result.numel()
        if func in (torch.ops.aten.bmm.default, torch.ops.aten.bmm.out):
            self.read += args[1].numel()
        if func is torch.ops.aten.baddbmm_.default:
            self.read += args[2].numel()
        return result
