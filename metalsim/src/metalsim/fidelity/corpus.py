"""The corpus: the `.metal` files beside this module. A comment before each kernel is its launch, in
the words of `metalsim run`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..buffer_files import read_buffer

_DIRECTORY = Path(__file__).parent
_LAUNCH = re.compile(
    r"^// run (\w+) --buffers (.+?) --threads ([\d ]+?)(?: --group ([\d ]+))?$", re.M
)

Compile = Callable[[str], Any]
"""The contract of torch.mps.compile_shader."""
ToDevice = Callable[[Any], Any]
"""From a numpy array to what the kernels of a compiler take."""


class Launch(NamedTuple):
    """One kernel of the corpus and how it is launched."""

    file: str
    source: str
    kernel: str
    buffers: tuple[str, ...]
    threads: tuple[int, ...]
    group: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """As it stands in a record."""
        return f"{self.file}:{self.kernel}"

    @property
    def digest(self) -> str:
        """Tells whether a record is of this very launch."""
        words = repr((self.source, self.buffers, self.threads, self.group))
        return hashlib.sha256(words.encode()).hexdigest()[:16]

    def run(self, compile_shader: Compile, to_device: ToDevice) -> dict[int, Any]:
        """The arrays after the launch, as `to_device` made them, by slot."""
        kernel = getattr(compile_shader(self.source), self.kernel)
        values = [read_buffer(slot, word).value for slot, word in enumerate(self.buffers)]
        arguments = [to_device(value) if hasattr(value, "dtype") else value for value in values]
        group = {} if self.group is None else {"group_size": self.group}
        kernel(*arguments, threads=self.threads, **group)
        return {slot: value for slot, value in enumerate(arguments) if hasattr(value, "dtype")}


def launches() -> list[Launch]:
    """The whole corpus, in the order of files and lines."""
    found = list[Launch]()
    for path in sorted(_DIRECTORY.glob("*.metal")):
        source = path.read_text(encoding="ascii")
        for kernel, buffers, threads, group in _LAUNCH.findall(source):
            found.append(
                Launch(
                    path.stem,
                    source,
                    kernel,
                    tuple(buffers.split()),
                    tuple(map(int, threads.split())),
                    tuple(map(int, group.split())) or None,
                )
            )
    return found
