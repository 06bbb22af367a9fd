"""What lint says, and the rules by which it says it."""

from __future__ import annotations

from typing import NamedTuple

from ..frontend.tokens import Token

RULES = {
    "address-space": "every pointer and reference names its address space, and none is converted "
    "to another",
    "ascii": "the source is ASCII, as torch.mps.compile_shader demands",
    "attribute": "attributes of kernel parameters stand on the types that Metal lists for them",
    "buffer-index": "buffer indices of a kernel are unique and from 0 to 30",
    "constant-write": "nothing is written to const data or to the constant address space",
    "dynamic-memory": "no new, delete",
    "exceptions": "no try, catch, throw",
    "double": "no double, long double",
    "function-pointer": "no pointers to functions",
    "goto": "no goto",
    "lambda": "no lambda expressions before Metal 3.2",
    "program-scope": "variables outside of functions are in the constant address space",
    "recursion": "no function calls itself, directly or through others",
    "reserved-name": "no names that Metal or C++ reserves: main, __x, _X",
    "rtti": "no dynamic_cast, typeid",
    "source": "the source is Metal as metalsim's front end understands it",
    "static-local": "no static or thread_local variables in functions",
    "threadgroup-variable": "threadgroup variables are declared in kernels",
    "threads": "a kernel asks for 1 to 1024 threads a threadgroup",
    "type": "expressions have the types that their operators and functions take",
    "variable-length-array": "arrays have constant lengths",
    "version": "nothing is used that the target version of Metal lacks",
    "virtual": "no virtual functions",
}
"""Each rule's name, and what it demands."""


class LintFinding(NamedTuple):
    """A construct that Apple's compiler would refuse, as far as that can be known here."""

    rule: str
    """A key of RULES."""
    source: str
    """The file: "program_source" for the linted text itself, else the name of an #include or of a
    #line."""
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}:{self.column}"
        return f"{place}: error: {self.message} [{self.rule}]"


def finding_at(rule: str, token: Token, message: str) -> LintFinding:
    """A finding at the place of a token."""
    return LintFinding(rule, token.source, token.line, token.column, message)
