"""Single words: the qualifiers and literals that C++ spells otherwise, and what Metal or metalsim
does not have."""

from __future__ import annotations

from .syntax import QUALIFIERS, closing_angle, skip_type_name
from .tokens import IDENTIFIER, Token, error_at

ADDRESS_SPACE_MACROS = {
    "device": "METALSIM_DEVICE",
    "constant": "METALSIM_CONSTANT",
    "threadgroup": "METALSIM_THREADGROUP",
    "thread": "METALSIM_THREAD",
}
_MATRIX_SIZES = [f"{columns}x{rows}" for columns in (2, 3, 4) for rows in (2, 3, 4)]
REFUSED_WORDS = {
    **dict.fromkeys(
        "double goto virtual new delete throw try catch typeid dynamic_cast thread_local".split(),
        "'{}' is not supported in Metal",
    ),
    **dict.fromkeys(
        """vertex fragment ray_data object_data threadgroup_imageblock
        texture1d texture1d_array texture2d texture2d_array texture2d_ms texture2d_ms_array
        texture3d texture_buffer texturecube texturecube_array depth2d depth2d_array depth2d_ms
        depth2d_ms_array depthcube depthcube_array imageblock visible_function_table
        intersection_function_table acceleration_structure instance_acceleration_structure
        primitive_acceleration_structure mesh_grid_properties""".split(),
        "metalsim does not support '{}'",
    ),
    **dict.fromkeys(
        [f"{element}{size}" for element in ("float", "half") for size in _MATRIX_SIZES],
        "metalsim does not support '{}': use an array of vectors, its columns",
    ),
}
_FIRST_SPECIFIERS = frozenset({"static", "inline", "extern", "volatile", "typename", "thread"})
_END_OF_SPECIFIERS = frozenset("* & && , ; ) = ( [ { > :".split())


def refuse_word(token: Token, before: Token | None) -> None:
    """SyntaxError for a word that has no meaning here; a name after a dot or in `a::` is the
    user's own."""
    if before is not None and before.text in (".", "->", "::"):
        return
    raise error_at(token, REFUSED_WORDS[token.text].format(token.text))


def needs_const(tokens: list[Token], at: int) -> bool:
    """Whether the `constant` at `at` must become `const` too: no const or constexpr in the same
    specifiers."""
    before = at - 1
    words = [token.text for token in tokens[max(before, 0) : at + 2]]
    if words[:1] == [")"] and words[-1] == ":":  # a constructor's own address space
        return False
    while before >= 0 and tokens[before].text in _FIRST_SPECIFIERS:
        before -= 1
    if before >= 0 and tokens[before].text in ("const", "constexpr"):
        return False
    after = at + 1
    while after < len(tokens) and tokens[after].text not in _END_OF_SPECIFIERS:
        if tokens[after].text in ("const", "constexpr"):
            return False
        if tokens[after].text == "<":
            after = closing_angle(tokens, after) or after
        after += 1
    return True


def declares_value(tokens: list[Token], at: int) -> bool:
    """Whether the address space at `at` is that of a variable, not of what a pointer or reference
    points to."""
    after = _skip_qualifiers(tokens, at + 1)
    if at and tokens[at - 1].text in ("*", "&"):
        return after < len(tokens) and tokens[after].text not in ("*", "&")
    after = _skip_qualifiers(tokens, skip_type_name(tokens, after))
    return after < len(tokens) and tokens[after].kind == IDENTIFIER


def _skip_qualifiers(tokens: list[Token], at: int) -> int:
    while at < len(tokens) and tokens[at].text in QUALIFIERS:
        at += 1
    return at


def literal(token: Token) -> Token:
    """A number as C++ spells it: Metal has no double, so that `1.0` is a float, and has half and
    bfloat literals."""
    text = token.text
    lower = text.lower()
    is_hexadecimal = lower.startswith("0x")
    if is_hexadecimal and "p" not in lower:
        return token
    if not is_hexadecimal and "." not in lower and "e" not in lower:
        if lower.endswith("h"):
            raise error_at(
                token, f"'{text}' is no literal: a half needs a decimal point, as in {text[:-1]}.0h"
            )
        return token
    if lower.endswith("bf"):
        return token._replace(text=f"bfloat({text[:-2]}f)")
    if lower.endswith("h"):
        return token._replace(text=f"half({text[:-1]}f)")
    if lower.endswith("l"):
        raise error_at(token, f"'{text}': long double is not supported in Metal")
    return token if lower.endswith("f") else token._replace(text=text + "f")
