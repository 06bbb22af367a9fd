"""``import flash_attn`` on flashmetal, where no real flash_attn is installed.

>>> from flashmetal.integrations import flash_attn as shim
>>> shim.install()
>>> from flash_attn import flash_attn_func
>>> from flash_attn.bert_padding import pad_input, unpad_input
>>> from flash_attn.layers.rotary import apply_rotary_emb
>>> from flash_attn_interface import flash_attn_with_kvcache  # flash_attn 3

Call it before the libraries that look for flash_attn when they are imported. The distribution
flashmetal-flash-attn does so at every start of Python. FLASHMETAL_FLASH_ATTN=0 in the environment
switches both off.
"""

from __future__ import annotations

import sys
import warnings

from .finder import ORIGIN, SWITCH, Finder, is_ours, real_flash_attn, switch

__all__ = ["install", "uninstall"]


def install(*, metadata: bool = False) -> None:
    """Serve imports of flash_attn and flash_attn_interface; a real flash_attn still comes first.

    Args:
        metadata: let importlib.metadata list a distribution "flash-attn" 2.8.3 too. Without it
            diffusers does not offer its "flash" backends, and version pins are not misled.

    Raises:
        ValueError: FLASHMETAL_FLASH_ATTN has a value that means nothing.

    Warns:
        UserWarning: nothing is served, and why.
    """
    is_off = switch() == "0"
    _remove_finders()
    sys.meta_path.append(Finder(metadata))
    if is_off:
        reason = f"{SWITCH}=0 is set in the environment"
    elif (place := real_flash_attn()) is not None:
        reason = f"a real flash_attn was found at {place}"
    else:
        return
    warnings.warn(
        f"flashmetal.integrations.flash_attn.install: {reason}, so imports of flash_attn are left "
        "as they are",
        stacklevel=2,
    )


def uninstall() -> None:
    """Undo :func:`install`: later imports fail again; names imported before stay what they are."""
    _remove_finders()
    for name in [name for name, module in sys.modules.items() if is_ours(module)]:
        del sys.modules[name]


def _remove_finders() -> None:
    # One that the flashmetal-flash-attn distribution put there is of another class, from its copy.
    sys.meta_path[:] = [x for x in sys.meta_path if getattr(x, "origin", None) != ORIGIN]
