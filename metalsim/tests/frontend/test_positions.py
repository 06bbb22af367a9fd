"""Every copied token stands at its own line and column, or the column map knows its own."""

from __future__ import annotations

from metalsim.frontend import ColumnMap, translate
from metalsim.frontend.tokens import tokenize

SOURCE = """\
#include <metal_stdlib>
using namespace metal;
#define TWICE(x) ((x) + (x))
#define DECLARE(name) int name

// a comment, then blank lines



struct Pair {   int first;   float second; };
constant float scale = 2.5;   constant int after = 1;
template <typename T>
inline T helper(threadgroup T* p, constant T& q, T r) { return p[0] + q * r; }
kernel void run(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  threadgroup float tile[4][8], one;   int marker = 3;
  out[i] = TWICE(marker) + marker; int behind_macro;
  DECLARE(declared); int last = TWICE(behind_macro
      + declared) * marker;
  half h = 1.0h; float behind_literal;
}
#line 500 "other.metal"
inline int moved(int x) { return x >> 2; }
"""


def original_positions(code: str, columns: ColumnMap) -> dict[str, set[tuple[str, int, int]]]:
    """Where a compiler would say that each word of `code` stands, through the column map."""
    found: dict[str, set[tuple[str, int, int]]] = {}
    source, line = "", 0
    for text in code.splitlines():
        if text.startswith("#line"):
            _, number, name = text.split()
            source, line = name.strip('"'), int(number)
            continue
        for token in tokenize("" if text.startswith("#") else text):
            column = columns.original(source, line, token.column)
            found.setdefault(token.text, set()).add((source, line, column))
        line += 1
    return found


def test_words_are_found_at_their_place_in_the_source() -> None:
    translation = translate(SOURCE)
    found = original_positions(translation.code, translation.columns)
    lines = SOURCE.split("\n")
    words = ["Pair", "second", "scale", "after", "helper", "out", "tile", "one", "marker", "last"]
    words += ["behind_macro", "declared", "behind_literal"]
    for word in words:
        for number, text in enumerate(lines[:20], 1):
            for token in tokenize("" if text.startswith("#") else text):
                if token.text == word:
                    place = ("program_source", number, token.column)
                    assert place in found[word], (word, place, found[word])
    shift = lines.index("inline int moved(int x) { return x >> 2; }")
    assert ("other.metal", 500, lines[shift].index("moved") + 1) in found["moved"]


def test_untouched_text_is_copied_character_by_character() -> None:
    source = (
        "struct A {\n    int  x ;\n\tfloat y[2] = { 1 , 2 };   // gone\n};\n"
        "inline int f() { return 1 >> 2; }\n"
    )
    code = translate(source).code
    for line in ("struct A {", "    int  x ;", "inline int f() { return 1 >> 2; }"):
        assert line in code.splitlines()
