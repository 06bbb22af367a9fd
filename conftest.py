"""Hypothesis for both test trees: the same examples every time, many more in the long run."""

from hypothesis import settings

import metalsim  # noqa: F401  (else pytest takes the directory metalsim/ for the package)

settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile("short")
