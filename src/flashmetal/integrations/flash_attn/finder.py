"""Finds ``flash_attn`` and ``flash_attn_interface`` where no real one is installed.

Hardly anything is imported before something is found: the flashmetal-flash-attn distribution runs
a copy of this file at every start of the interpreter.
"""

import os
import sys

# Importing typing, or even __future__, takes as long as all the rest.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from importlib.metadata import Distribution, DistributionFinder
    from types import ModuleType
    from typing import Any, NoReturn

ORIGIN = "flashmetal"
SWITCH = "FLASHMETAL_FLASH_ATTN"  # "0": nothing is found; "metadata": as install(metadata=True)
VERSION = "2.8.3"  # the flash_attn whose functions these are

_HERE = "flashmetal.integrations.flash_attn"
# The module whose __all__ each of ours has; None is a package with nothing in it.
_SOURCES = {
    "flash_attn": f"{_HERE}.flash_attn_2",
    "flash_attn.bert_padding": "flashmetal.bert_padding",
    "flash_attn.flash_attn_interface": f"{_HERE}.flash_attn_2",
    "flash_attn.layers": None,
    "flash_attn.layers.rotary": "flashmetal.rotary",
    "flash_attn.ops": None,
    "flash_attn.ops.triton": None,
    "flash_attn.ops.triton.rotary": "flashmetal.rotary",
    "flash_attn_interface": f"{_HERE}.flash_attn_3",
}


def switch() -> str:
    """What the environment says, "" for nothing; ValueError where that means nothing."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "metadata"):
        raise ValueError(f"{SWITCH} must be one of 0, metadata, got {value!r}")
    return value


def is_ours(module: "ModuleType | None") -> bool:
    """Whether a module came from a :class:`Finder`."""
    return getattr(getattr(module, "__spec__", None), "origin", None) == ORIGIN


def real_flash_attn() -> str | None:
    """Where a flash_attn lies that is not ours, or None."""
    loaded = sys.modules.get("flash_attn")
    if loaded is not None and not is_ours(loaded):
        return getattr(loaded, "__file__", None) or "sys.modules"
    for finder in sys.meta_path:  # an editable install has one of its own
        find = getattr(finder, "find_spec", None)
        if find is None or getattr(finder, "origin", None) == ORIGIN:
            continue
        spec = find("flash_attn", None)
        if spec is not None:
            return spec.origin or str(spec.submodule_search_locations)
    return None


class Finder:
    """A meta path finder, to be appended: whatever else finds a flash_attn comes first.

    With ``metadata`` importlib.metadata lists a distribution "flash-attn" too.
    """

    origin = ORIGIN

    def __init__(self, metadata: bool = False) -> None:
        self.metadata = metadata

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of one of our modules; parts of a real flash_attn are never mixed with ours."""
        if name not in _SOURCES or switch() == "0":
            return None
        parent = name.rpartition(".")[0]
        if not is_ours(sys.modules.get(parent)) if parent else real_flash_attn():
            return None
        from importlib.machinery import ModuleSpec

        is_package = any(other.startswith(f"{name}.") for other in _SOURCES)
        loader: Any = _Loader()  # not of importlib.abc's class, which is slow to import
        return ModuleSpec(name, loader, origin=ORIGIN, is_package=is_package)

    def find_distributions(
        self, context: "DistributionFinder.Context | None" = None
    ) -> "Iterator[Distribution]":
        """Where metadata is wanted, a distribution "flash-attn" for importlib.metadata."""
        value = os.environ.get(SWITCH)  # a wrong one is an error of flash_attn's import alone
        if value == "0" or not (self.metadata or value == "metadata") or real_flash_attn():
            return
        wanted = getattr(context, "name", None)
        if wanted is None or wanted.lower().replace("_", "-") == "flash-attn":
            yield _distribution()


class _Loader:
    def create_module(self, spec: "ModuleSpec") -> None:
        """Python's own empty module will do."""

    def exec_module(self, module: "ModuleType") -> None:
        source = _SOURCES[module.__name__]
        if source is None:
            return
        from importlib import import_module

        found = import_module(source)
        module.__doc__ = found.__doc__
        for name in found.__all__:
            setattr(module, name, getattr(found, name))
        if module.__name__ == "flash_attn":
            import_module("flash_attn.flash_attn_interface")  # the real one imports it too


def _distribution() -> "Distribution":
    from importlib.metadata import Distribution

    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\nVersion: {VERSION}\n",
        "top_level.txt": "flash_attn\n",
    }

    class FlashAttn(Distribution):
        def read_text(self, filename: str) -> str | None:
            return texts.get(filename)

        def locate_file(self, path: object) -> "NoReturn":
            raise FileNotFoundError(
                f"{path}: this flash-attn is flashmetal, which has no such file"
            )

    return FlashAttn()
