"""Scratch memory for runs, kept between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...kernels.abi import LINE_BYTES

MOST_KEPT, MOST_KEPT_BYTES = 4, 1 << 21  # pieces kept, and bytes of the largest


class Piece(NamedTuple):
    nbytes: int
    address: int
    array: Any  # owns it


_kept: list[Piece] = []


def borrow(nbytes: int) -> Piece:
    """A piece of at least so many bytes, which nobody else uses until it is given back."""
    try:
        piece = _kept.pop()
    except IndexError:
        piece = Piece(0, 0, None)
    if piece.nbytes < nbytes:
        array = np.empty(nbytes + LINE_BYTES, np.uint8)
        address = array.ctypes.data
        piece = Piece(nbytes, address + -address % LINE_BYTES, array)
    return piece


def give_back(piece: Piece) -> None:
    if len(_kept) < MOST_KEPT and piece.nbytes <= MOST_KEPT_BYTES:
        _kept.append(piece)
