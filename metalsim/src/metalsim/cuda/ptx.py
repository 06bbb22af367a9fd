"""What PTX text says of its kernels before any GPU sees it."""

from __future__ import annotations

import re

_ENTRY = re.compile(r"\.entry metalsim_entry_(\d+)\(.*?^}$", re.MULTILINE | re.DOTALL)
_SHARED = re.compile(r"^\s*(?:\.\w+ )?\.shared \.align \d+ \.b8 (\w+)\[(\d+)\];", re.MULTILINE)
_WORKSPACE = re.compile(r"\bmetalsim_workspace_bytes = (\d+);")
_NAME = re.compile(r"\w+")
_ALIGNMENT = 16


def threadgroup_bytes(ptx: str) -> dict[int, int]:
    """Bytes of threadgroup variables by the number of the entry, each variable aligned to 16."""
    sizes = {name: int(size) for name, size in _SHARED.findall(ptx)}
    return {
        int(entry[1]): sum(
            -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT
            for name in set(_NAME.findall(entry[0])) & sizes.keys()
        )
        for entry in _ENTRY.finditer(ptx)
    }


def workspace_bytes(ptx: str) -> int:
    """Global memory that each simdgroup needs for tensor operations; 0: the program has none."""
    found = _WORKSPACE.search(ptx)
    return int(found[1]) if found else 0
