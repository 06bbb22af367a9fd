"""From an address in a kernel library to the line of the user's source, through the library's own
debug information; no symbolizer is needed."""

from __future__ import annotations

from .table import LineTable, Location

__all__ = ["LineTable", "Location"]
