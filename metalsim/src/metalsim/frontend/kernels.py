"""Kernel signatures: parameters to buffer indices and built-in values, explicit instantiations to
entry points."""

from __future__ import annotations

import math

from .conditions import Condition
from .program import Argument, Kernel, Signature
from .syntax import (
    TYPE_WORDS,
    Attribute,
    closing,
    closing_angle,
    is_attribute,
    join_strings,
    read_attributes,
    skip_type_name,
    split_attributes,
    split_commas,
)
from .tokens import IDENTIFIER, PUNCTUATOR, Token, error_at, spell

MAX_BUFFERS = 31
MAX_THREADS = 1024

BUILTIN_VALUES = frozenset(
    """dispatch_quadgroups_per_threadgroup dispatch_simdgroups_per_threadgroup
    dispatch_threads_per_threadgroup grid_origin grid_size quadgroup_index_in_threadgroup
    quadgroups_per_threadgroup simdgroup_index_in_threadgroup simdgroups_per_threadgroup
    thread_execution_width thread_index_in_quadgroup thread_index_in_simdgroup
    thread_index_in_threadgroup thread_position_in_grid thread_position_in_threadgroup
    threadgroup_position_in_grid threadgroups_per_grid threads_per_grid threads_per_simdgroup
    threads_per_threadgroup""".split()
)
_FUNCTION_ATTRIBUTES = frozenset(
    {"kernel", "host_name", "max_total_threads_per_threadgroup", "required_threads_per_threadgroup"}
)
_PLAIN_ATTRIBUTES = frozenset(
    {"id", "flatten", "unused", "visible_to_linker", "buffer", "threadgroup"}
    | BUILTIN_VALUES
    | _FUNCTION_ATTRIBUTES
)
_CPP_ATTRIBUTES = frozenset(
    {"maybe_unused", "nodiscard", "fallthrough", "likely", "unlikely", "deprecated"}
)


def check_attribute(attribute: Attribute) -> bool:
    """True to keep the attribute for the C++ compiler, False to drop it; SyntaxError where it is
    unknown."""
    name = attribute.name
    if name in _CPP_ATTRIBUTES or "::" in name:
        return True
    if name in _PLAIN_ATTRIBUTES:
        return False
    raise error_at(attribute.where, f"metalsim does not support the attribute '{name}' here")


def parameter_list(tokens: list[Token]) -> int | None:
    """Index of the '(' that opens a function declaration's parameters, None where there is none."""
    at = 0
    while at < len(tokens):
        text = tokens[at].text
        if is_attribute(tokens, at):
            at = read_attributes(tokens, at)[1]
            continue
        if text == "(":
            before = tokens[at - 1].text if at else ""
            if before not in ("decltype", "__attribute__", "alignas", "_Pragma"):
                return at
            at = closing(tokens, at)
        elif text == "[":
            at = closing(tokens, at)
        elif text == "<":
            at = closing_angle(tokens, at) or at
        at += 1
    return None


def read_signature(
    tokens: list[Token],
    attributes: list[Attribute],
    scope: tuple[str, ...],
    template: list[Token],
) -> Signature:
    """The kernel declared by `tokens`, which end at its body; `attributes` are those in front of
    its name, `template` what stands in front of a template."""
    opening = parameter_list(tokens)
    name = tokens[opening - 1] if opening else None
    if opening is None or name is None or name.kind != IDENTIFIER:
        raise error_at(tokens[0], "expected a kernel function: kernel void name(parameters)")
    if all(token.text != "void" for token in tokens[:opening]):
        raise error_at(name, f"kernel '{name.text}' must return void")
    parameters = split_commas(tokens[opening + 1 : closing(tokens, opening)])
    limits = {attribute.name: tuple(attribute.arguments) for attribute in attributes}
    return Signature(
        name,
        scope,
        _arguments(parameters),
        tuple(template),
        limits.get("max_total_threads_per_threadgroup", ()),
        limits.get("required_threads_per_threadgroup", ()),
    )


def address_of(signature: Signature) -> str:
    """The kernel's own address in its body: of the instantiation that the body belongs to, if it is
    a template's; `nullptr` where a parameter of the template has neither name nor value."""
    arguments = list[str]()
    for parameter in split_commas(list(signature.template[2:-1])):
        words = [token.text for token in parameter]
        declared = words[: words.index("=")] if "=" in words else words
        if _is_unnamed(parameter[: len(declared)]):
            if declared != words:
                break  # and so have those behind it
            return "(nullptr)"
        arguments.append(f"{declared[-1]}{'...' if '...' in declared else ''}")
    name = "::".join(("", *signature.scope, signature.name.text))
    return f"(&{name}<{', '.join(arguments)}>)" if signature.template else f"(&{name})"


def _is_unnamed(parameter: list[Token]) -> bool:
    """Of a template: `typename`, `int`, `typename T::type`."""
    last = parameter[-1]
    is_name = last.kind == IDENTIFIER and last.text not in TYPE_WORDS
    return len(parameter) == 1 or not is_name or parameter[-2].text == "::"


def _max_threads(signature: Signature, arguments: list[list[Token]]) -> int:
    """The limit of an instantiation with these template arguments. Constants of the program are the
    C++ compiler's to evaluate, so an expression with any of them is no limit here."""
    values = _template_values(signature.template, arguments)
    tokens = list[Token]()
    for token in signature.limit:
        tokens += values.get(token.text, [token])
    if not tokens or any(token.kind == IDENTIFIER for token in tokens):
        return MAX_THREADS
    return min(MAX_THREADS, Condition(tokens, tokens[0]).value())


def _group(signature: Signature, arguments: list[list[Token]]) -> tuple[int, ...]:
    """The three sizes that an instantiation requires, nothing where they are not known here."""
    values = _template_values(signature.template, arguments)
    sizes = list[int]()
    for size in split_commas(list(signature.group)):
        tokens = [number for token in size for number in values.get(token.text, [token])]
        if not tokens or any(token.kind == IDENTIFIER for token in tokens):
            return ()
        sizes.append(Condition(tokens, tokens[0]).value())
    return (*sizes, 1, 1)[:3] if sizes else ()


def _template_values(
    template: tuple[Token, ...], arguments: list[list[Token]]
) -> dict[str, list[Token]]:
    """What the parameters of a template stand for, each in parentheses."""
    values = dict[str, list[Token]]()
    for number, parameter in enumerate(split_commas(list(template[2:-1]))):
        words = [token.text for token in parameter]
        end = words.index("=") if "=" in words else len(words)
        value = arguments[number] if number < len(arguments) else parameter[end + 1 :]
        if value and end:
            around = value[0]._replace(kind=PUNCTUATOR)
            opening, closing_one = around._replace(text="("), around._replace(text=")")
            values[words[end - 1]] = [opening, *value, closing_one]
    return values


def _arguments(parameters: list[list[Token]]) -> tuple[Argument, ...]:
    split = [split_attributes(parameter) for parameter in parameters]
    fixed = [_buffer_index(attributes) for _, attributes in split]
    taken = {index for index in fixed if index is not None}
    arguments, seen, free = list[Argument](), set[int](), 0
    for (declaration, attributes), index in zip(split, fixed, strict=True):
        where = declaration[0] if declaration else attributes[0].where
        builtin = _builtin(attributes)
        is_constant = any(token.text == "constant" for token in declaration)
        if builtin:
            arguments.append(Argument(None, builtin, False))
            continue
        if index is None:
            _check_buffer_parameter(declaration, attributes)
            while free in taken:
                free += 1
            index = free
            taken.add(index)
        optional = any(attribute.name == "function_constant" for attribute in attributes)
        if index in seen and not optional:
            raise error_at(where, f"two parameters of this kernel are bound to buffer({index})")
        if not 0 <= index < MAX_BUFFERS:
            raise error_at(
                where,
                f"buffer({index}): Metal has {MAX_BUFFERS} buffer slots, 0 to {MAX_BUFFERS - 1}",
            )
        seen.add(index)
        required = not optional and any(token.text == "&" for token in declaration)
        writable = not _is_read_only(declaration)
        arguments.append(Argument(index, "", is_constant, writable, required))
    return tuple(arguments)


def _is_read_only(declaration: list[Token]) -> bool:
    """Whether what the parameter points to is const: the word stands before the first * or &."""
    words = [token.text for token in declaration]
    end = min((words.index(mark) for mark in ("*", "&", "[") if mark in words), default=len(words))
    return "const" in words[:end] or "constant" in words[:end]


def _buffer_index(attributes: list[Attribute]) -> int | None:
    for attribute in attributes:
        if attribute.name == "buffer":
            tokens = attribute.arguments
            if not tokens or any(token.kind == IDENTIFIER for token in tokens):
                raise error_at(
                    attribute.where,
                    f"buffer({spell(tokens)}): metalsim needs a number here, or an integer "
                    "constant or enumerator of the program: write the number",
                )
            return Condition(tokens, attribute.where).value()
    return None


def _builtin(attributes: list[Attribute]) -> str:
    for attribute in attributes:
        if attribute.name in BUILTIN_VALUES:
            return attribute.name
        if attribute.name == "threadgroup":
            raise error_at(
                attribute.where,
                "threadgroup(n) memory is sized by the host, which compile_shader cannot do: "
                "declare a threadgroup array inside the kernel",
            )
        if attribute.name not in ("buffer", "function_constant") and not attribute.name.startswith(
            "clang::"
        ):
            raise error_at(
                attribute.where,
                f"metalsim does not support the kernel argument [[{attribute.name}]]",
            )
    return ""


def _check_buffer_parameter(declaration: list[Token], attributes: list[Attribute]) -> None:
    if not declaration:
        raise error_at(attributes[0].where, "expected a parameter")
    name = declaration[-1]
    if name.text == "]":  # an array, which is a pointer to its elements
        name = declaration[[token.text for token in declaration].index("[") - 1]
    elif not any(token.text in ("*", "&") for token in declaration):
        raise error_at(
            name,
            f"kernel parameter '{name.text}' is neither a pointer or reference nor has the "
            "attribute of a "
            "built-in value",
        )
    if not any(token.text in ("device", "constant") for token in declaration):
        raise error_at(
            name, f"kernel parameter '{name.text}' must be in the device or constant address space"
        )


def read_instantiation(
    tokens: list[Token],
    attributes: list[Attribute],
    scope: tuple[str, ...],
    signatures: dict[str, Signature],
    name: str | None = None,
) -> Kernel:
    """The kernel of `template [[host_name("x")]] [[kernel]] decltype(f<A>) f<A>;` (attributes
    taken out)."""
    opening = parameter_list(tokens)
    end = len(tokens) if opening is None else opening
    start = _start_of_name(tokens, end)
    base = next((token for token in tokens[start:end] if token.text in signatures), None)
    expression = spell(tokens[start:end])
    where = tokens[start] if start < len(tokens) else tokens[0]
    if base is None:
        raise error_at(
            where, f"'{expression}' names no kernel template that is defined before this line"
        )
    signature = signatures[base.text]
    for attribute in attributes:
        if attribute.name == "host_name":
            name = join_strings(attribute.arguments)
    opening = next((at for at in range(start, end) if tokens[at].text == "<"), end)
    arguments = split_commas(tokens[opening + 1 : end - 1])
    group = _group(signature, arguments)
    max_threads = math.prod(group) if group else _max_threads(signature, arguments)
    return Kernel(
        name or expression, expression, where, scope, signature.arguments, max_threads, group
    )


def _start_of_name(tokens: list[Token], end: int) -> int:
    """Where the qualified name that ends before `end` begins: behind the return type."""
    start = at = 0
    while at < end:
        start = at
        at = max(skip_type_name(tokens[:end], at), at + 1)
    return start
