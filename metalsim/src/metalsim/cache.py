"""Compiled libraries on disk, named by the hash of everything they depend on."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import machine

_PACKAGE = Path(__file__).parent


def cache_directory(chosen: str | os.PathLike[str] | None = None) -> Path:
    """`chosen`, else $METALSIM_CACHE_DIR, else the user's cache directory; made if it is not
    there."""
    directory = Path(chosen or os.environ.get("METALSIM_CACHE_DIR") or _user_cache() / "metalsim")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(
            f"metalsim cannot make its cache directory {directory} ({error.strerror}): "
            "set METALSIM_CACHE_DIR to one that can be written"
        ) from error
    return directory.resolve()


def _user_cache() -> Path:
    if "XDG_CACHE_HOME" in os.environ:
        return Path(os.environ["XDG_CACHE_HOME"])
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")


def digest(*parts: str) -> str:
    """32 hexadecimal digits that stand for `parts`."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(f"{len(part)}:".encode())
        hashed.update(part.encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()[:32]


@functools.lru_cache(maxsize=1)
def machine_digest() -> str:
    """Stands for everything of metalsim that a compiled library depends on besides its own code."""
    return digest_of([*machine.inputs(), Path(machine.__file__), _PACKAGE / "compiler.py"])


@functools.lru_cache(maxsize=1)
def front_end_digest() -> str:
    """Stands for the way from Metal source to C++, and for the records that are kept of it."""
    return digest_of([*sorted((_PACKAGE / "frontend").glob("*.py")), _PACKAGE / "build.py"])


def digest_of(files: list[Path]) -> str:
    """Stands for the names and contents of `files`."""
    parts = [part for file in files for part in (file.name, file.read_text(encoding="utf-8"))]
    return digest(*parts)


def shared_file(directory: Path, name: str, build: Callable[[Path], None]) -> Path:
    """`directory/name`, built by `build(path)` where it is missing.

    It appears whole or not at all, and of several processes that want it at once one builds it.
    """
    target = directory / name
    if target.exists():
        return target
    with _lock(directory / f"{name}.lock"):
        if not target.exists():
            workplace = Path(tempfile.mkdtemp(prefix="building-", dir=directory))
            try:
                build(workplace / name)
                os.replace(workplace / name, target)
            finally:
                shutil.rmtree(workplace, ignore_errors=True)
    return target


@contextmanager
def _lock(path: Path) -> Generator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def read_record(directory: Path, name: str) -> dict[str, Any] | None:
    """A JSON record of the cache, None where there is none or it is damaged."""
    try:
        return json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_record(directory: Path, name: str, record: dict[str, Any]) -> None:
    """Write a JSON record; readers see all of it or nothing."""
    text = json.dumps(record)

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    (directory / name).unlink(missing_ok=True)
    shared_file(directory, name, write)
