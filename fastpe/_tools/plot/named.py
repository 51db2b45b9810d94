"""Encodings and scaling rules by text: ``sinusoidal``, ``rotary:base=500000,interleaved=true``, ``ntk:factor=4``.

A text is a name and fields of that value, written as ``NAME:field=value,...`` or as Python does, ``Name(field=value)``. Nothing in it is
executed.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

import fastpe

from ... import scaling
from ..._core.checks import message

WORDS = {"true": True, "false": False, "none": None}
ELSEWHERE = {"theta": "base", "rope_theta": "base", "max_wavelength": "base", "num_heads": "heads", "dim": "rotary_dim"}


def encodings() -> dict[str, type]:
    """The encodings that fastpe has, by their names in small letters."""
    public = {name: getattr(fastpe, name) for name in fastpe.__all__}
    return {name.lower(): value for name, value in public.items() if _is_value(value)}


def rules() -> dict[str, type]:
    """The rules of ``fastpe.scaling``, by their names in small letters."""
    return {name.lower(): getattr(scaling, name) for name in scaling.__all__ if _is_value(getattr(scaling, name))}


def _is_value(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)


def encoding(text: str) -> Any:
    """The encoding that a text describes.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.named.encoding("sinusoidal:base=100,layout=concatenated").layout
    'concatenated'
    >>> fastpe.plot.named.encoding("rotary:scaling=linear(factor=4)").scaling
    Linear(factor=4.0)
    """
    return _value("encoding", text, encodings())


def rule(text: str) -> Any:
    """The scaling rule that a text describes.

    Examples
    --------
    >>> import fastpe.plot
    >>> fastpe.plot.named.rule("ntk:factor=8")
    NTK(factor=8.0)
    """
    return _value("scaling", text, rules())


def recipe(text: str) -> Any:
    """The encoding of a published model, ``fastpe.recipe(name).encoding``; fields that it leaves open after a colon."""
    name, _, rest = text.partition(":")
    try:
        call = ast.parse(f"fields({rest})", mode="eval").body
        assert isinstance(call, ast.Call)
        fields = {one.arg or "**": ast.literal_eval(one.value) for one in call.keywords}
        if call.args:
            raise ValueError
    except (SyntaxError, ValueError):
        rule = "recipe must be a name, or a name and fields such as bloom:heads=112"
        raise ValueError(message("plot", rule, repr(text))) from None
    return fastpe.recipe(name, **fields).encoding


# ---- texts -------------------------------------------------------------------------------------------------------------------


def _value(what: str, text: str, known: dict[str, type]) -> Any:
    name, colon, rest = text.partition(":")
    source = f"{name}({rest})" if colon and "(" not in name else text
    try:
        node = ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        rule = f"{what} must be a name and its fields, NAME:field=value,..."
        raise ValueError(message("plot", rule, repr(text))) from None
    return _made(what, node, known, text)


def _made(what: str, node: ast.expr, known: dict[str, type], text: str) -> Any:
    call = node if isinstance(node, ast.Call) else None
    named = node if call is None else call.func
    if not isinstance(named, ast.Name) or (call is not None and (call.args or any(k.arg is None for k in call.keywords))):
        rule = f"{what} must be a name and its fields, NAME:field=value,..."
        raise ValueError(message("plot", rule, repr(text)))
    kind = known.get(named.id.lower())
    if kind is None:
        remedy = _nearest(named.id.lower(), known)
        raise ValueError(message("plot", f"{what} must be one of {', '.join(sorted(known))}", repr(named.id), remedy))
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    given = {str(keyword.arg): _literal(str(keyword.arg), keyword.value) for keyword in (call.keywords if call else ())}
    unknown = [name for name in given if name not in fields]
    if unknown:
        rule = f"{named.id} has the fields {', '.join(fields)}"
        raise ValueError(message("plot", rule, repr(unknown[0]), _nearest(unknown[0], fields)))
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in given]
    if needed:
        learned = {"table", "cos", "sin", "w1", "b1", "w2", "b2"} & set(needed)
        remedy = (
            f"They are learned arrays: make a fastpe.{kind.__name__} and call fastpe.plot from Python."
            if learned
            else f"Write {named.id}:{','.join(f'{name}=...' for name in needed)}."
        )
        raise ValueError(message("plot", f"{named.id} needs {' and '.join(needed)}", repr(text), remedy))
    try:
        return kind(**given)
    except TypeError as error:  # of a field; it says which
        raise ValueError(str(error)) from None


def _nearest(name: str, known: Iterable[str]) -> str:
    """What the user may have meant, or nothing. What other libraries call a field counts, too."""
    known = [*known]
    near = [ELSEWHERE[name]] if ELSEWHERE.get(name) in known else difflib.get_close_matches(name, known, 1, 0.5)
    return f"Did you mean {near[0]!r}?" if near else ""


def _literal(field: str, node: ast.expr) -> Any:
    if field == "scaling" and not isinstance(node, ast.Constant) and ast.unparse(node).lower() != "none":
        return _made("scaling", node, rules(), ast.unparse(node))
    if isinstance(node, ast.Name):  # a word, such as a layout
        return WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(message("plot", f"{field} must be a number, a word or a tuple", repr(ast.unparse(node)))) from None
