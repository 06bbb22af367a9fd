"""Where `#include` looks."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path


def add_include_option(parser: argparse.ArgumentParser) -> None:
    """`-I DIR`, gathered as the list `include`."""
    parser.add_argument(
        "-I",
        dest="include",
        action="append",
        default=[],
        metavar="DIR",
        help="where #include looks, after the folder of the file",
    )


def read_include_dirs(
    function: str, include_dirs: Sequence[str | os.PathLike[str]]
) -> tuple[Path, ...]:
    """The directories given to the public function `function`; TypeError for a bare string."""
    if isinstance(include_dirs, (str, os.PathLike)):
        raise TypeError(f"{function}: include_dirs must be a list of directories, not just one")
    return tuple(Path(directory).resolve() for directory in include_dirs)


def torch_headers() -> tuple[Path, ...]:
    """The folder of torch's own headers (`c10/metal/...`), where torch is installed."""
    torch = importlib.util.find_spec("torch")
    return (Path(torch.origin).parent / "include",) if torch is not None and torch.origin else ()
