"""Mutations of CUDA source: operators that stand between spaces, and whole numbers. Comments and directives are left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mutations import Mutation

OPERATORS = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "%": "/",
    "<<": ">>",
    ">>": "<<",
    "&": "|",
    "|": "&",
    "^": "&",
    "&&": "||",
    "||": "&&",
    "+=": "-=",
    "-=": "+=",
}
_OPERATOR = re.compile(r"(?<= )(" + "|".join(re.escape(one) for one in sorted(OPERATORS, key=len, reverse=True)) + r")(?= )")
_NUMBER = re.compile(r"(?<![\w.\"])(\d+)(?=[^\w.\"])")
_SKIPPED = re.compile(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"|^[ \t]*#[^\n]*|template *<[^>]*>", re.S | re.M)


def of_source(source: bytes) -> list[Mutation]:
    """Every mutation of a file, in the order of the text. Those that do not compile are found out by who runs them."""
    text = source.decode("ascii")
    code = _SKIPPED.sub(lambda match: re.sub(r"[^\n]", "\0", match[0]), text)
    return sorted(_mutations(code))


def _mutations(code: str) -> Iterator[Mutation]:
    for pattern in (_OPERATOR, _NUMBER):
        for match in pattern.finditer(code):
            line = code.count("\n", 0, match.start()) + 1
            old = match[1]
            for new in [OPERATORS[old]] if pattern is _OPERATOR else [str(int(old) + 1)]:
                yield Mutation(match.start(1), match.end(1), new, old, (line, line), (0, 0))
