"""Files of what is known of one machine: below $FLASHMETAL_CACHE_DIR or the user's caches."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from tempfile import TemporaryDirectory

import torch


def machine_name(chip: str) -> str:
    """Chip, system and torch version: what is found out holds for these alone."""
    release = platform.mac_ver()[0] or platform.release()
    return f"{chip}, {platform.system()} {release}, torch {torch.__version__}"


def machine_file(folder: str, chip: str) -> Path:
    """The JSON file of this machine in a folder for one kind of knowledge."""
    given = os.environ.get("FLASHMETAL_CACHE_DIR")
    caches = Path.home() / ("Library/Caches" if platform.system() == "Darwin" else ".cache")
    name = machine_name(chip).replace(" ", "_").replace(",", "")
    return (Path(given) if given else caches / "flashmetal") / folder / f"{name}.json"


def replace_text(path: Path, text: str) -> None:
    """Write a file whole: who reads it meanwhile finds the old one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}.") as folder:
        beside = Path(folder) / path.name
        beside.write_text(text)
        beside.replace(path)
