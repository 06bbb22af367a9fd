"""Rules about what kernels declare: types of attributes, threads of a threadgroup."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..frontend.conditions import Condition
from ..frontend.kernels import BUILTIN_VALUES, MAX_THREADS
from ..frontend.syntax import (
    ADDRESS_SPACES,
    QUALIFIERS,
    Attribute,
    closing,
    split_attributes,
    split_commas,
)
from ..frontend.tokens import IDENTIFIER, Token, spell
from .findings import LintFinding, finding_at
from .segments import Segment, parameters_of, without_templates

_POSITIONS = frozenset(
    """dispatch_threads_per_threadgroup grid_origin grid_size thread_position_in_grid
    thread_position_in_threadgroup threadgroup_position_in_grid threadgroups_per_grid
    threads_per_grid threads_per_threadgroup""".split()
)
"""Built-in values of one to three dimensions; the others are numbers."""
_NUMBERS = ("ushort", "uint")
_VECTORS = tuple(f"{number}{length}" for number in _NUMBERS for length in ("", 2, 3))
_ALIASES = {
    "unsigned": "uint",
    "unsigned int": "uint",
    "uint32_t": "uint",
    "unsigned short": "ushort",
    "uint16_t": "ushort",
}
_SCALARS = "bool char uchar short ushort int uint long ulong half bfloat float size_t".split()
_BUILT_IN = frozenset(f"{scalar}{length}" for scalar in _SCALARS for length in ("", 2, 3, 4))
_LIMITS = ("max_total_threads_per_threadgroup", "required_threads_per_threadgroup")


def check_kernels(segments: list[Segment], tokens: list[Token]) -> Iterator[LintFinding]:
    """Findings about the signatures of kernels; `tokens` are the whole program, for its
    typedefs."""
    names = _typedefs(tokens)
    for segment in segments:
        _, attributes = split_attributes(segment.tokens)
        is_kernel = any(attribute.name == "kernel" for attribute in attributes) or any(
            token.text == "kernel" for token in segment.tokens
        )
        if segment.scope != "namespace" or not is_kernel:
            continue
        for attribute in attributes:
            if attribute.name in _LIMITS:
                yield from _check_threads(attribute)
        head = without_templates(segment.tokens)
        opening = parameters_of(head)
        if opening is not None:
            for parameter in split_commas(head[opening + 1 : closing(head, opening)]):
                yield from _check_parameter(parameter, names)


def _check_threads(attribute: Attribute) -> Iterator[LintFinding]:
    tokens = attribute.arguments
    if not tokens or any(token.kind == IDENTIFIER for token in tokens):
        return
    sizes = [Condition(part, attribute.where).value() for part in split_commas(tokens)]
    if min(sizes) < 1 or math.prod(sizes) > MAX_THREADS:
        message = (
            f"{attribute.name}({spell(tokens)}): "
            f"a threadgroup has from 1 to {MAX_THREADS} threads in all"
        )
        yield finding_at("threads", attribute.where, message)


def _check_parameter(parameter: list[Token], names: dict[str, str]) -> Iterator[LintFinding]:
    declaration, attributes = split_attributes(parameter)
    for attribute in attributes:
        if attribute.name not in BUILTIN_VALUES:
            continue
        words = [token for token in declaration if token.text not in QUALIFIERS | ADDRESS_SPACES]
        written = _without_metal(spell(words[:-1]))
        name = names.get(written, written)
        allowed = _VECTORS if attribute.name in _POSITIONS else _NUMBERS
        marked = any(token.text in ("*", "&") for token in words)
        if marked or (_ALIASES.get(name, name) not in allowed and _is_known(name)):
            message = (
                f"type '{spell(declaration[:-1])}' is not valid for attribute "
                f"'{attribute.name}': {', '.join(allowed)}"
            )
            yield finding_at("attribute", attribute.where, message)


def _is_known(name: str) -> bool:
    """Whether the type is one of Metal's: others, as parameters of templates, may be anything."""
    return name in _BUILT_IN or name in _ALIASES or name in ("unsigned long", "unsigned char")


def _without_metal(name: str) -> str:
    return name.removeprefix("::").removeprefix("metal::")


def _typedefs(tokens: list[Token]) -> dict[str, str]:
    """What `typedef T Name;` and `using Name = T;` name, where T is one of Metal's own types."""
    names = dict[str, str]()
    for at, token in enumerate(tokens):
        if token.text not in ("typedef", "using"):
            continue
        end = next((i for i in range(at, len(tokens)) if tokens[i].text == ";"), len(tokens))
        words = tokens[at + 1 : end]
        if token.text == "typedef" and len(words) > 1:
            names[words[-1].text] = _without_metal(spell(words[:-1]))
        elif len(words) > 2 and words[1].text == "=":
            names[words[0].text] = _without_metal(spell(words[2:]))
    return names
