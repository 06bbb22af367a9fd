"""Lint: what Apple's compiler would refuse of a Metal program, found without Apple's compiler.

Some rules are read off the tokens (`words`, `pointers`, `kernels`), some are the front end's own,
and those about types are asked of clang's OpenCL C++ front end, whose address spaces behave as
Metal's (`clang`, `recursion`). Without clang the latter are left out.
"""

from __future__ import annotations

from .findings import RULES, LintFinding
from .run import NEEDS_CLANG, VERSIONS, lint

__all__ = ["NEEDS_CLANG", "RULES", "VERSIONS", "LintFinding", "lint"]
