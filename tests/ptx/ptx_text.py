"""The grammar of PTX: patterns of its statements, the types of registers, literals."""

from __future__ import annotations

import re

import numpy as np
from ptx_memory import PTXError

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)??(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?$"
)
VARIABLE = re.compile(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$")
TOKEN = re.compile(r"\s*(?:(?P<brace>[{}])|(?P<label>[\w$]+)\s*:(?!:)|(?P<statement>[^;]*);)")
INSTRUCTION = re.compile(r"(?:@(!?[%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+)\s*)?\]$")
CACHING = re.compile(r"(weak|relaxed|volatile|gpu|sys|cta|cluster|nc|ca|cg|cs|cv|lu|wb|wt|L[12]::\w+)$")


def stored_as(dtype: np.dtype | None) -> np.dtype:
    """The type that registers hold: predicates, or plain bits."""
    if dtype is None:
        raise PTXError("unsupported register type")
    return dtype if dtype.kind == "b" else np.dtype(f"u{dtype.itemsize}")


def immediate(text: str, dtype: np.dtype) -> np.ndarray:
    """(1,) the value of a literal: decimal, hexadecimal, or the bits of a float (0f, 0d)."""
    try:
        digits = text.removeprefix("0f").removeprefix("0d")
        bits = int(digits.rstrip("U"), 0) if digits == text else int(digits, 16)
    except ValueError:
        raise PTXError(f"unknown name {text}") from None
    if dtype.kind == "b":
        return np.array([bits != 0])
    return np.array([bits % 2 ** (8 * dtype.itemsize)], np.dtype(f"u{dtype.itemsize}")).view(dtype)
