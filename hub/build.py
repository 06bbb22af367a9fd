"""Build flashmetal as a package of the Hugging Face kernels library.

    python hub/build.py dist/hub

makes a kernel repository: what kernel-builder takes (build.toml, torch-ext/) and what it would give
(build/torch-metal, build/torch-universal), which ``kernels.get_local_kernel`` loads as it is. The
requirements are those of https://huggingface.co/docs/kernels/kernel-requirements.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
from pathlib import Path

NAME = "flashmetal"
VERSION = 1
LICENSE = "apache-2.0"
REPOSITORY = "flashmetal/flashmetal"
SUFFIXES = ("h", "metal", "py", "txt")
# A variant is a folder's name and the backend in its metadata, which has no word for "universal".
VARIANTS = {"torch-metal": "metal", "torch-universal": "cpu"}
# Integrations import the libraries they serve, by whom flashmetal is loaded here.
LEFT_OUT = ("tools/cli.py", "integrations")

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / NAME

BUILD_TOML = f"""\
[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["metal", "cpu", "cuda"]

[general.hub]
repo-id = "{REPOSITORY}"

[torch-noarch]
pyext = {json.dumps(SUFFIXES)}
"""

# Where versions of kernels that know no flat variants look for the package.
NESTED_INIT = """\
import importlib.util
import sys
from pathlib import Path

_ID, _PATH = "{id}", Path(__file__).parents[1] / "__init__.py"
if _ID not in sys.modules:
    _spec = importlib.util.spec_from_file_location(_ID, _PATH)
    sys.modules[_ID] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_ID])
globals().update({{name: getattr(sys.modules[_ID], name) for name in sys.modules[_ID].__all__}})
"""


def build(target: Path) -> None:
    """Make the repository in ``target``, which may hold an older one and nothing else."""
    if target.exists():
        if any(target.iterdir()) and not (target / "build.toml").exists():
            raise SystemExit(f"hub/build.py: {target} holds something else; name another folder")
        shutil.rmtree(target)
    target.mkdir(parents=True)
    (target / "build.toml").write_text(BUILD_TOML)
    for name in ("README.md", "flake.nix"):
        shutil.copy(HERE / name, target)
    copy_sources(target / "torch-ext" / NAME)
    for variant, backend in VARIANTS.items():
        build_variant(target / "build" / variant, backend)


def build_variant(folder: Path, backend: str) -> None:
    copy_sources(folder)
    # The id is the module's name and the namespace of its operators: another one for other sources.
    content = json.dumps(hashes(folder), sort_keys=True).encode()
    identity = f"_{NAME}_{backend}_{hashlib.sha256(content).hexdigest()[:8]}"
    (folder / NAME).mkdir()
    (folder / NAME / "__init__.py").write_text(NESTED_INIT.format(id=identity))
    metadata = {
        "id": identity,
        "name": NAME,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": hashes(folder)},
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")


def copy_sources(folder: Path) -> None:
    for path in sorted(SOURCE.rglob("*")):
        place = path.relative_to(SOURCE)
        if path.suffix[1:] in SUFFIXES and not place.as_posix().startswith(LEFT_OUT):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / place)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, in base64, by its path in the folder."""
    return {
        path.relative_to(folder).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", type=Path, help="folder to make the kernel repository in")
    build(parser.parse_args().target)
