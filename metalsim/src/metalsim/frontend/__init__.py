"""Metal source to C++: `translate`, and its steps for those who look at programs otherwise."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .address_space_twins import erase_twins
from .constant_values import evaluate_attributes
from .emitter import ColumnMap, emit
from .function_constants import FunctionConstants
from .preprocessor import Preprocessed, Preprocessor
from .program import FunctionConstant, Kernel, Translation
from .rewriter import Rewriter
from .tokens import Token, error_at

__all__ = [
    "ColumnMap",
    "FunctionConstant",
    "Kernel",
    "Preprocessed",
    "Preprocessor",
    "Translation",
    "assemble",
    "quoted_errors",
    "translate",
]


def translate(
    source: str,
    *,
    function_constants: Mapping[str | int, FunctionConstant] | None = None,
    include_dirs: Sequence[Path] = (),
    system_dirs: Sequence[Path] = (),
    tensor_definitions: str = "",
) -> Translation:
    """One Metal program as one C++ translation unit.

    `tensor_definitions` are lines of C++ for programs that use Metal 4's tensors.

    Raises SyntaxError, with the line and column of the user's source, for what is not Metal or not
    supported.
    """
    preprocessor = Preprocessor(include_dirs, system_dirs)
    with quoted_errors(preprocessor):
        preprocessed = preprocessor.run(source)
        tokens = evaluate_attributes(erase_twins(preprocessed.tokens))
        rewriter = Rewriter(tokens, FunctionConstants(function_constants or {}))
        rewriter.run()
        _check_names(rewriter.kernels)
    entries = "".join(_entry(number, kernel) for number, kernel in enumerate(rewriter.kernels))
    definitions = tensor_definitions if preprocessed.headers else ""
    return assemble(rewriter.output, rewriter.kernels, preprocessed, definitions, entries)


def assemble(
    tokens: list[Token],
    kernels: list[Kernel],
    preprocessed: Preprocessed,
    before: str = "",
    after: str = "",
) -> Translation:
    """The rewritten `tokens` as a translation unit: `before`, the headers, the program, `after`."""
    body, columns = emit(tokens)
    headers = ("metalsim/shim.h", *sorted(preprocessed.headers))
    includes = "".join(f"#include <{header}>\n" for header in headers)
    return Translation(f"{before}{includes}{body}{after}", kernels, columns, preprocessed)


@contextmanager
def quoted_errors(preprocessor: Preprocessor) -> Generator[None]:
    """Errors about lines that `preprocessor` has read quote them."""
    try:
        yield
    except SyntaxError as error:
        if error.text is None and error.filename and error.lineno:
            lines = Preprocessed([], preprocessor.files, preprocessor.segments, False)
            error.text = lines.line_text(error.filename, error.lineno)
        raise


def _check_names(kernels: list[Kernel]) -> None:
    seen = set[str]()
    for kernel in kernels:
        if kernel.name in seen:
            raise error_at(kernel.where, f"two kernels are named '{kernel.name}'")
        seen.add(kernel.name)


def _entry(number: int, kernel: Kernel) -> str:
    """The entry point, at the user's line and column, inside the namespaces of the kernel."""
    arguments = ", ".join(argument.macro() for argument in kernel.arguments)
    where = kernel.where
    before = "".join(f"namespace {name} {{ " for name in kernel.scope)
    after = " }" * len(kernel.scope)
    margin = " " * (where.column - 1)
    return (
        f'{before}\n#line {where.line} "{where.source}"\n'
        f"{margin}METALSIM_ENTRY({number}, ({arguments}), {kernel.expression})\n{after}\n"
    )
