"""Recursion, found in the calls of the code that clang makes of a program."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .findings import LintFinding

_DEFINE = re.compile(r'^define .*?@("[^"]+"|[\w.$]+)\(.*!dbg !(\d+)')
_CALL = re.compile(r'\bcall\b.*?@("[^"]+"|[\w.$]+)\(')
_FUNCTION = re.compile(
    r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".* file: !(\d+), line: (\d+)'
)
_FILE = re.compile(r'^!(\d+) = !DIFile\(filename: "([^"]*)"')


def check_recursion(code: str) -> Iterator[LintFinding]:
    """A finding for each function of LLVM's `code` that calls itself, directly or through others.
    Functions of templates count where they are used."""
    calls, places = _read(code)
    for name in calls:
        if name in places and _reaches(calls, name):
            shown, source, line = places[name]
            message = f"'{shown}' calls itself: recursion is not supported in Metal"
            yield LintFinding("recursion", source, line, 1, message)


def _read(output: str) -> tuple[dict[str, set[str]], dict[str, tuple[str, str, int]]]:
    """Who calls whom, and the name, file and line of each function."""
    calls, debug = dict[str, set[str]](), dict[str, str]()
    functions, files = dict[str, tuple[str, str, int]](), dict[str, str]()
    current = ""
    for line in output.splitlines():
        if match := _DEFINE.match(line):
            current = match[1]
            calls[current], debug[current] = set(), match[2]
        elif line == "}":
            current = ""
        elif current and (match := _CALL.search(line)):
            calls[current].add(match[1])
        elif match := _FUNCTION.match(line):
            functions[match[1]] = (match[2], match[3], int(match[4]))
        elif match := _FILE.match(line):
            files[match[1]] = match[2]
    places = {
        name: (shown, files[file], number)
        for name, key in debug.items()
        for shown, file, number in [functions[key]]
    }
    return calls, places


def _reaches(calls: dict[str, set[str]], start: str) -> bool:
    """Whether `start` is among the functions that `start` leads to."""
    seen, waiting = set[str](), list(calls[start])
    while waiting:
        name = waiting.pop()
        if name == start:
            return True
        if name not in seen:
            seen.add(name)
            waiting += calls.get(name, ())
    return False
