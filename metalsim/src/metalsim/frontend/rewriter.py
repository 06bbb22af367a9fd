"""The rewriter: a preprocessed Metal program to C++ tokens, and the kernels it holds.

It walks the program in segments, the stretches between `;`, `{` and `}`, and knows of each brace
whether it opens a namespace, a type, a function or a kernel. Only five things change shape:
kernels, threadgroup variables, a thread's own arrays, function constants and explicit
instantiations; every other token is copied, a few words replaced.
"""

from __future__ import annotations

from typing import NamedTuple

from .function_constants import FunctionConstants
from .kernels import (
    address_of,
    check_attribute,
    parameter_list,
    read_instantiation,
    read_signature,
)
from .private_arrays import rewrite_private_arrays
from .program import Kernel, Signature
from .syntax import (
    closing_angle,
    is_attribute,
    outer_texts,
    read_attributes,
    split_attributes,
)
from .threadgroup_variables import rewrite_threadgroup_variables
from .tokens import IDENTIFIER, NUMBER, Token, error_at
from .words import (
    ADDRESS_SPACE_MACROS,
    REFUSED_WORDS,
    declares_value,
    literal,
    needs_const,
    refuse_word,
)

_WORDS = frozenset(
    {
        *ADDRESS_SPACE_MACROS,
        *REFUSED_WORDS,
        "kernel",
        "delete",
        "[",
        "coherent",
        "is_function_constant_defined",
    }
)
_TYPE_KEYWORDS = frozenset({"struct", "class", "union", "enum"})
_NO_VARIABLE = _TYPE_KEYWORDS | {
    "using",
    "typedef",
    "namespace",
    "static_assert",
    "extern",
    "friend",
    "operator",
}


class Scope(NamedTuple):
    """What a `{` opened: "namespace", "type", "function", "constexpr" (a function), "kernel" or
    "data".

    `depth` is that of the parentheses around it, `declares` the type of the arrays that it
    initializes.
    """

    kind: str
    names: tuple[str, ...] = ()
    depth: int = 0
    declares: tuple[Token, ...] = ()


class Rewriter:
    """One run over one program's tokens; the results are `output` and `kernels`."""

    def __init__(self, tokens: list[Token], constants: FunctionConstants) -> None:
        self._tokens = tokens
        self._constants = constants
        self._scopes = [Scope("namespace")]
        self._signatures: dict[str, Signature] = {}
        self._kernel = ""
        """The address of the kernel whose body this is, as its threadgroup variables name it."""
        self._variables = 0
        self._goes_on = False
        """Whether the declaration goes on behind the last brace, as after an initializer."""
        self._declares: tuple[Token, ...] = ()
        """The type of the arrays that it declares."""
        self.output: list[Token] = []
        self.kernels: list[Kernel] = []

    def run(self) -> None:
        """Rewrite the program; SyntaxError at the first construct that Metal or metalsim does not
        have."""
        tokens, start, depth = self._tokens, 0, 0
        for at, token in enumerate(tokens):
            text = token.text
            if text in ("(", "["):
                depth += 1
            elif text in (")", "]"):
                depth -= 1
            elif text == ";" and depth == 0:
                self._statement(tokens[start:at], token)
                start = at + 1
            elif text == "{":
                self._open(tokens[start:at], token, depth)
                start, depth = at + 1, 0
            elif text == "}":
                self._copy(tokens[start:at])
                self.output.append(token)
                if len(self._scopes) == 1:
                    raise error_at(token, "extraneous closing brace ('}')")
                closed = self._scopes.pop()
                depth, start = closed.depth, at + 1
                self._goes_on = closed.kind in ("data", "type")
                self._declares = closed.declares
        self._copy(tokens[start:])
        if len(self._scopes) > 1:
            raise error_at(tokens[-1], "expected '}' before the end of the program")
        self._constants.check()

    def _open(self, head: list[Token], brace: Token, depth: int) -> None:
        scope = self._scopes[-1]
        if scope.kind in ("function", "constexpr", "kernel", "data"):
            opened = self._open_inside(head, scope.kind, depth)
        elif depth or (self._goes_on and head):
            self._copy(head)
            opened = Scope("data", (), depth)
        else:
            opened = self._open_declaration(head, depth)
        self._goes_on = False
        self._scopes.append(opened)
        self.output.append(brace)

    def _open_inside(self, head: list[Token], kind: str, depth: int) -> Scope:
        """A brace in a function: a block, a type or an initializer."""
        _refuse_type_of_variable(head)
        if kind == "kernel" and not depth and self._declare_threadgroup_variables(head):
            return Scope(kind, (), depth)
        if depth:
            self._copy(head)
            return Scope(kind, (), depth)
        outer = outer_texts(head)
        if "(" not in outer and "=" not in outer and _TYPE_KEYWORDS & set(outer[:1]):
            self._copy(head)
            return Scope("type", (), depth)
        declares = self._declare_arrays(head, True)
        if declares is None:
            self._copy(head)
        return Scope(kind, (), depth, declares or ())

    def _declare_threadgroup_variables(self, statement: list[Token]) -> bool:
        """Rewrite a declaration of threadgroup variables; False for all else."""
        rewritten = rewrite_threadgroup_variables(statement, self._kernel, self._variables)
        if rewritten is None:
            return False
        tokens, count = rewritten
        self._variables += count
        self._copy(tokens)
        return True

    def _declare_arrays(
        self, statement: list[Token], initialized: bool
    ) -> tuple[Token, ...] | None:
        """Rewrite a declaration of arrays in a function and give its type; None for all else."""
        goes_on = bool(self._declares) and statement[:1] and statement[0].text == ","
        if goes_on:
            self.output.append(statement[0]._replace(text=";"))
            statement = [*self._declares, *statement[1:]]
        self._declares = ()
        if self._scopes[-1].kind not in ("function", "kernel"):
            return None
        declaration = rewrite_private_arrays(statement, initialized)
        if declaration is None and not goes_on:
            return None
        self._copy(statement if declaration is None else declaration.tokens)
        return () if declaration is None else declaration.type_tokens

    def _open_declaration(self, head: list[Token], depth: int) -> Scope:
        outer = outer_texts(head)
        if "namespace" in outer:
            self._copy(head)
            names = head[[token.text for token in head].index("namespace") + 1 :]
            return Scope(
                "namespace", tuple(token.text for token in names if token.kind == IDENTIFIER), depth
            )
        if outer[:1] == ["extern"] and parameter_list(head) is None and "=" not in outer:
            raise error_at(head[0], "extern blocks are not supported in Metal")
        if "(" not in outer and _TYPE_KEYWORDS & set(outer):
            self._copy(head)
            return Scope("type", (), depth)
        if _is_kernel(head):
            self._define_kernel(head)
            return Scope("kernel", (), depth)
        self._check_program_variable(head, outer)
        self._copy(head)
        if head and not _is_function(outer):
            return Scope("data", (), depth)
        return Scope("constexpr" if "constexpr" in outer else "function", (), depth)

    def _statement(self, statement: list[Token], end: Token) -> None:
        kind = self._scopes[-1].kind
        if kind == "kernel" and self._declare_threadgroup_variables(statement):
            self.output.append(end)
            return
        if self._declare_arrays(statement, False) is not None:
            self.output.append(end)
            return
        if kind == "namespace" and statement and not self._goes_on:
            if self._special_declaration(statement):
                return
            self._check_program_variable(statement, outer_texts(statement))
        elif kind == "type" and _is_constant_of_type(outer_texts(statement)):
            self.output.append(statement[0]._replace(text="constexpr"))
        self._goes_on = False
        self._copy(statement)
        self.output.append(end)

    def _special_declaration(self, statement: list[Token]) -> bool:
        """Instantiations and function constants; True where nothing is left to copy."""
        if any(token.text == "function_constant" for token in statement):
            self.output += self._constants.declare(statement)
            return True
        is_instantiation = (
            statement[0].text == "template" and statement[1:2] and statement[1].text != "<"
        )
        if not is_instantiation or not _is_kernel(statement):
            return False
        rest, attributes = split_attributes(statement[1:])
        for attribute in attributes:
            check_attribute(attribute)
        rest = [token for token in rest if token.text != "kernel"]
        self.kernels.append(read_instantiation(rest, attributes, self._names(), self._signatures))
        return True

    def _names(self) -> tuple[str, ...]:
        return tuple(name for scope in self._scopes for name in scope.names)

    def _define_kernel(self, head: list[Token]) -> None:
        if self._scopes[-1].kind != "namespace":
            raise error_at(head[0], "a kernel cannot be a member function")
        opening = parameter_list(head)
        before, after = (head, []) if opening is None else (head[:opening], head[opening:])
        before, attributes = split_attributes(before)
        for attribute in attributes:
            check_attribute(attribute)
        start = 0
        while before[start].text == "template":
            start = (closing_angle(before, start + 1) or start + 1) + 1
        signature = read_signature(
            [*before[start:], *after], attributes, self._names(), before[:start]
        )
        self._signatures[signature.name.text] = signature
        self._kernel, self._variables = address_of(signature), 0
        if not signature.template:
            name = [signature.name]
            plain = read_instantiation(name, attributes, signature.scope, self._signatures)
            self.kernels.append(plain)
        function = [token for token in before[start:] if token.text not in ("kernel", "static")]
        marker = before[start]._replace(text="METALSIM_KERNEL", kind=IDENTIFIER)
        parameters, _ = split_attributes(after)
        self._copy([*before[:start], marker, *function, *parameters])

    def _check_program_variable(self, head: list[Token], outer: list[str]) -> None:
        if self._scopes[-1].kind != "namespace" or len(head) < 2 or _NO_VARIABLE & set(outer):
            return
        if not _is_function(outer) and head[0].text != "," and "constant" not in outer:
            raise error_at(
                head[0],
                "program scope variable must reside in constant address space: "
                "write `constant` in front",
            )

    def _copy(self, tokens: list[Token]) -> None:
        output, at = self.output, 0
        while at < len(tokens):
            token = tokens[at]
            if token.kind == NUMBER:
                output.append(literal(token))
            elif token.text in _WORDS:
                at = self._word(tokens, at)
                continue
            else:
                output.append(token)
            at += 1

    def _word(self, tokens: list[Token], at: int) -> int:
        """Copy or replace the word at `at`; the index behind what was taken."""
        token, output = tokens[at], self.output
        text = token.text
        if text == "[":
            if not is_attribute(tokens, at):
                output.append(token)
                return at + 1
            return self._attributes(tokens, at)
        if text == "coherent" and (end := _coherent_end(tokens, at)) > at:
            return end
        if text in ADDRESS_SPACE_MACROS:
            self._address_space(tokens, at)
        elif text == "kernel":
            output.append(token._replace(text="METALSIM_KERNEL"))
        elif text == "coherent":
            output.append(token)
        elif text == "is_function_constant_defined":
            replacement, at = self._constants.query(tokens, at)
            output.append(replacement)
        elif text == "delete":
            if not at or tokens[at - 1].text != "=":
                self._refuse_word(token, None)
            output.append(token)
        else:
            self._refuse_word(token, tokens[at - 1] if at else None)
            output.append(token)
        return at + 1

    def _refuse_word(self, token: Token, before: Token | None) -> None:
        refuse_word(token, before)

    def _address_space(self, tokens: list[Token], at: int) -> None:
        token = tokens[at]
        if token.text == "threadgroup" and declares_value(tokens, at):
            raise error_at(
                token,
                "a threadgroup variable must be declared by a statement of its own in the body of "
                "a kernel; pass helpers a threadgroup pointer",
            )
        self.output.append(token._replace(text=ADDRESS_SPACE_MACROS[token.text]))
        if token.text == "constant" and needs_const(tokens, at):
            self.output.append(token._replace(text="const"))

    def _attributes(self, tokens: list[Token], at: int) -> int:
        attributes, end = read_attributes(tokens, at)
        for attribute in attributes:
            if attribute.name == "kernel":
                self.output.append(attribute.where._replace(text="METALSIM_KERNEL"))
            elif check_attribute(attribute):
                self.output += tokens[at:end]
                break
        return end


def _coherent_end(tokens: list[Token], at: int) -> int:
    """Index behind the qualifier `coherent(device)`, which nothing needs here; `at` for a name."""
    words = [token.text for token in tokens[at + 1 : at + 4]]
    if words in (["(", "device", ")"], ["(", "system", ")"]):
        return at + 4
    return at + 1 if words[:1] and words[0] in ADDRESS_SPACE_MACROS else at


def _is_function(outer: list[str]) -> bool:
    """Whether a declaration has a parameter list, in front of any initializer."""
    return "(" in outer and ("=" not in outer or outer.index("(") < outer.index("="))


def _is_constant_of_type(outer: list[str]) -> bool:
    """Whether a member `static const constant float x = 1;` needs constexpr, as C++ demands of all
    but integers; pointers may move."""
    head = set(outer[: outer.index("=")]) if "=" in outer else set[str]()
    return {"static", "constant"} <= head and not {"constexpr", "*", "("} & head


def _refuse_type_of_variable(head: list[Token]) -> None:
    """`threadgroup struct { ... } a;` has its type and its variable in one."""
    words = [token.text for token in head]
    if "threadgroup" in words and _TYPE_KEYWORDS & set(words[-2:]):
        message = "declare the type of a threadgroup variable before the variable"
        raise error_at(head[words.index("threadgroup")], message)


def _is_kernel(tokens: list[Token]) -> bool:
    return any(token.text == "kernel" for token in tokens)
