"""Mutations of Python source: small changes that a test should notice, each a replaced span of the text.

Comments, docstrings, messages, annotations and what stands inside an f-string are left alone.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from typing import NamedTuple

COMPARISONS: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.FloorDiv(),
    ast.FloorDiv: ast.Mult(),
    ast.Div: ast.Mult(),
    ast.Mod: ast.FloorDiv(),
    ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.BitXor: ast.BitOr(),
}
SIMPLE = (ast.Name, ast.Attribute)


class Mutation(NamedTuple):
    start: int  # of the replaced span, in bytes
    end: int
    new: str
    old: str
    lines: tuple[int, int]  # of the statement around it, or of the head of a compound one
    block: tuple[int, int]  # of the function around it; (0, 0) outside functions

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]


def of_source(source: bytes) -> list[Mutation]:
    """Every mutation of a file, in the order of the text."""
    finder = _Finder(source)
    finder.visit(finder.tree)
    return sorted(set(finder.found))


class _Finder(ast.NodeVisitor):
    def __init__(self, source: bytes) -> None:
        self.source = source
        self.tree = ast.parse(source)
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutation] = []
        self.block = self.lines = (0, 0)

    def visit(self, node: ast.AST) -> None:
        before = self.block, self.lines
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            first = min((one.lineno for one in getattr(node, "decorator_list", ())), default=node.lineno)
            self.lines = first, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
        for new in _replacements(node):
            self.replace(node, new)
        if isinstance(node, ast.If | ast.While) and not _is_for_types(node):
            self.replace(node.test, "True")
            self.replace(node.test, "False")
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            self.block = node.lineno, node.end_lineno or node.lineno
        for child in _mutable_children(node):
            self.visit(child)
        self.block, self.lines = before

    def replace(self, node: ast.AST, new: str) -> None:
        start, end = self.offset(node), self.offset(node, "end_")
        if isinstance(node, ast.With):  # its head alone
            end = self.source.index(b":", self.offset(node.items[-1].context_expr, "end_")) + 1
        old = self.source[start:end].decode()
        if old != new:
            self.found.append(Mutation(start, end, new, old, self.lines, self.block))

    def offset(self, node: ast.AST, which: str = "") -> int:
        line: int = getattr(node, f"{which}lineno")
        column: int = getattr(node, f"{which}col_offset")
        return self.starts[line - 1] + column


def _mutable_children(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_for_types(node):
        return
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "bases"):
            yield from (child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST))


def _is_for_types(node: ast.AST) -> bool:
    """``if TYPE_CHECKING``, and names for types: nothing of them runs."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.dump(node.test)
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp | ast.Call):
        if isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr) and node.col_offset == 0:
            return all(isinstance(one, ast.BinOp | ast.Name | ast.BitOr | ast.Load) for one in ast.walk(node.value))
        words = {one.id for one in ast.walk(node.value) if isinstance(one, ast.Name)}
        return bool(words & {"Callable", "TypeVar", "TypeAlias", "Literal", "Union"})
    return False


def _replacements(node: ast.AST) -> Iterator[str]:
    """The mutated forms of one node."""
    if isinstance(node, ast.expr):
        yield from _of_expression(node)
    elif isinstance(node, ast.stmt) and not _is_for_types(node):
        yield from _of_statement(node)


def _of_expression(node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(ops=[operator]):
            yield _with(node, ops=[COMPARISONS[type(operator)]])
        case ast.Compare(ops=[*operators]):
            for k, operator in enumerate(operators):
                yield _with(node, ops=[*operators[:k], COMPARISONS[type(operator)], *operators[k + 1 :]])
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC:
            yield _with(node, op=ARITHMETIC[type(operator)])
        case ast.BoolOp(op=operator):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()) | ast.UnaryOp(op=ast.USub(), operand=ast.Name()):
            yield f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool(value)):
            yield str(not value)
        case ast.Constant(value=int(value)):
            yield str(value + 1)
            yield str(value - 1) if value else "(-1)"
        case ast.IfExp():
            yield f"({ast.unparse(node.body)})"
            yield f"({ast.unparse(node.orelse)})"
        case ast.Call(args=[*given]):
            for k, (one, other) in enumerate(itertools.pairwise(given)):
                if isinstance(one, SIMPLE) and isinstance(other, SIMPLE) and ast.dump(one) != ast.dump(other):
                    yield _with(node, args=[*given[:k], other, one, *given[k + 2 :]])


def _with(node: ast.expr, **fields: object) -> str:
    """The text of an expression with other fields, in brackets: it stands inside another one."""
    text = ast.unparse(type(node)(**(dict(ast.iter_fields(node)) | fields)))
    return text if isinstance(node, ast.Call) else f"({text})"


def _of_statement(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Raise() | ast.AugAssign() | ast.Delete() | ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield "pass"
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return None"
        case ast.Break():
            yield "pass"
        case ast.Continue():
            yield "pass"
        case ast.With(items=items) if not any(item.optional_vars for item in items):
            yield "if True:"
