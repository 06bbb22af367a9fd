"""What clang's OpenCL C++ front end says of a program: its address spaces behave as Metal's.

OpenCL's global, constant, local and private stand for device, constant, threadgroup and thread.
The generic address space is on, because without it clang cannot copy an object of a class: a
pointer that names none is therefore not found here but by `pointers`. What the front end refuses
and Metal does not is listed in _ARTIFACTS.
"""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..compiler import clang_drivers
from ..diagnostics import Message, in_user_source, read_messages, to_user_column
from ..frontend import Kernel, Preprocessed, Translation, assemble
from ..frontend.tokens import Token
from ..machine import INCLUDE_DIRECTORY
from .constructors import call_constructors
from .findings import LintFinding

_FLAGS = (
    *("-x", "clcpp", "-cl-std=CLC++2021", "-cl-no-stdinc", "-nostdinc"),
    *("-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space"),
    *("-Xclang", "-fnative-half-type", "-Xclang", "-fnative-half-arguments-and-returns"),
    *("-w", "-fno-caret-diagnostics", "-fno-color-diagnostics", "-ferror-limit=0"),
    *("-S", "-emit-llvm", "-O0", "-gline-tables-only", "-Xclang", "-femit-all-decls", "-o", "-"),
    f"-I{Path(__file__).parent / 'declarations'}",
    f"-I{INCLUDE_DIRECTORY}",
)
_ARTIFACTS = (
    # A temporary has no address space for clang; for Metal it is in thread.
    r"cannot bind reference in default address space to object",
    r"'this' object is in default address space",
    r"cannot be used to construct an object in address space unqualified",
    r"cannot initialize object parameter .* with an expression of type '(?!.*__)",
    r"binding reference .* to value of type '(?!.*__).*' changes address space",
    r"could not match '(const )?__private .*' against '(?!.*__)",
    r"that would make '(const )?__private .*' equal '(?!.*__)",
    r"incompatible operand types \('(?!.*__.*' and)",
    r"incompatible operand types \(.* and '(?!.*__)",
    r"field may not be qualified with an address space(.|\n)*[<,] ?(const )?__private ",
    # For the same reason none of the overloads for all address spaces is the best.
    r"(overloaded operator|call to member function) .* is ambiguous",
    # To a pointer in an address space it adds no object that converts to an integer.
    r"invalid operands to binary .*\*(__private)?'\)? and '(const )?__private (?!float|half|__bf)",
    # Implicit copies cannot read __constant.
    r"implicit (copy|move) .*reference in address space '__constant'",
    r"constexpr variable .* constant expression(.|\n)*instantiation of static data member",
    # The compiler's vectors take no list of fewer elements, or of other types.
    r"too few elements in vector initialization",
    r"cannot convert initializer list argument to '__private \w+[234]'",
    # Metal converts between the two, if asked.
    r"static_cast from .*\bhalf\b.* to .*__bf16",
    r"static_cast from .*__bf16.* to .*\bhalf\b",
)
_ARTIFACT = re.compile("|".join(_ARTIFACTS))
_WORDS = (
    (re.compile(r" \(aka '[^']*'\)"), ""),
    (re.compile(r"([*&\]])\s*__private"), r"\1"),
    (re.compile(r"typeof\(([^()]*)\)"), r"\1"),
    (re.compile(r"__generic (?=\w)"), ""),
    (re.compile(r"__generic"), "no address space"),
    (re.compile(r"__global"), "device"),
    (re.compile(r"__constant"), "constant"),
    (re.compile(r"__local"), "threadgroup"),
    (re.compile(r"__private"), "thread"),
    (re.compile(r"__bf16"), "bfloat"),
)
_RULES = (
    ("variable-length-array", re.compile(r"variable length array|array size is not a constant")),
    (
        "function-pointer",
        re.compile(
            r"pointers to functions|address of function|non-function|"
            r"pointer to function|member function pointer"
        ),
    ),
    ("static-local", re.compile(r"program scope variable|static local variable")),
    ("constant-write", re.compile(r"const-qualified|read-only|would lose const")),
    ("address-space", re.compile(r"address space|__(global|constant|local|private)\b[^']*[*&]")),
)


ANY_THREAD = "#define METALSIM_THREAD\n"
"""In front of a unit: what takes `thread` takes temporaries too, and much else."""


def translate_for_clang(
    tokens: list[Token], kernels: list[Kernel], preprocessed: Preprocessed
) -> Translation:
    """The rewriter's `tokens` as a translation unit of OpenCL C++, all its kernels in use."""
    instances = "".join(_instance(kernel) for kernel in kernels)
    return assemble(call_constructors(tokens), kernels, preprocessed, after=instances)


def _instance(kernel: Kernel) -> str:
    """The explicit instantiation of a template's kernel, which is an error for other kernels."""
    name, where = kernel.expression, kernel.where
    if "<" not in name:
        return ""
    before = "".join(f"namespace {scope} {{ " for scope in kernel.scope)
    after = " }" * len(kernel.scope)
    place = f'#line {where.line} "{where.source}"'
    return f"\n{place}\n{before}template decltype({name}) {name};{after}\n"


class Compiled(NamedTuple):
    """What clang made of a program: LLVM's code, empty if it has errors, and its messages."""

    code: str
    messages: list[Message]


def find_clang() -> tuple[str, ...] | None:
    """The command of a clang with an OpenCL C++ front end; None where there is none."""
    return next(filter(_takes_opencl, clang_drivers()), None)


@functools.lru_cache(maxsize=8)
def _takes_opencl(command: tuple[str, ...]) -> bool:
    with tempfile.TemporaryDirectory(prefix="metalsim-lint-") as folder:
        return _run(command, "#include <metalsim/shim.h>\n", folder).returncode == 0


def run_clang(command: tuple[str, ...], code: str) -> Compiled:
    """Compile a unit that `translate_for_clang` made.

    Raises RuntimeError where clang fails for another reason than the program.
    """
    with tempfile.TemporaryDirectory(prefix="metalsim-lint-") as folder:
        done = _run(command, code, folder)
    messages = read_messages(done.stderr)
    if done.returncode and not messages:
        raise RuntimeError(f"lint: {shlex.join(command)} failed:\n{done.stderr}")
    return Compiled(done.stdout, messages)


def _run(command: tuple[str, ...], code: str, folder: str) -> subprocess.CompletedProcess[str]:
    Path(folder, "program.clcpp").write_text(code, encoding="ascii")
    return subprocess.run(
        [*command, *_FLAGS, "program.clcpp"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )


def check_types(messages: list[Message], translation: Translation) -> Iterator[LintFinding]:
    """Findings about address spaces and types."""
    sources = {segment.source for segment in translation.preprocessed.segments}
    for at, message in enumerate(messages):
        if not message.kind.endswith("error"):
            continue
        texts = _texts(messages, at)
        if _ARTIFACT.search("\n".join(texts)):
            continue
        placed = in_user_source(messages, at, sources)
        if placed is None:
            place = f"{Path(message.source).name}:{message.line}"
            raise RuntimeError(f"lint: an error of metalsim's own at {place}: {message.text}")
        placed = to_user_column(placed, translation)
        place = (placed.source, placed.line, placed.column)
        yield LintFinding(_rule(texts), *place, _reworded(texts))


def _texts(messages: list[Message], at: int) -> list[str]:
    """The error's text and those of its notes."""
    texts = [messages[at].text]
    for message in messages[at + 1 :]:
        if message.kind.endswith("error"):
            break
        texts.append(message.text)
    return texts


def _rule(texts: list[str]) -> str:
    return next((name for name, words in _RULES if any(map(words.search, texts))), "type")


def _reworded(texts: list[str]) -> str:
    """The error, and the first note that says why no function takes the arguments, in Metal's
    words."""
    text, *notes = texts
    reason = next((note for note in notes if "not viable: " in note), "")
    if reason:
        text = f"{text}: {reason.partition('not viable: ')[2]}"
    for word, replacement in _WORDS:
        text = word.sub(replacement, text)
    return text
