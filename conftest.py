"""Hypothesis for both test trees: the same examples every time, in the long run ten times as many.

Tests that take more or fewer than usual say so in parts of ``settings().max_examples``.
"""

from hypothesis import settings

import metalsim  # noqa: F401  (else pytest takes the directory metalsim/ for the package)

settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("short")
