"""Calls of kernels: an operation on arrays of any rank and strides, as arguments of a kernel that knows four axes.

A call is a value that a backend runs (`fastpe._backends.base`). Its ``arguments`` yields one argument block for each kernel call, as a
dictionary whose keys are the field names of the kernel's layout in ``fastpe.kernels.abi``; fields that are missing are 0.
"""

from .add_sinusoidal import AddGrid, AddSinusoidal
from .add_toeplitz import AddToeplitz, QueryKeyRows
from .axes import Arguments, Rows
from .gather_sum import GatherSum
from .rotate import Pair, RotaryRows, Rotate

Call = AddSinusoidal | AddGrid | GatherSum | Rotate | AddToeplitz

__all__ = [
    "AddGrid",
    "AddSinusoidal",
    "AddToeplitz",
    "Arguments",
    "Call",
    "GatherSum",
    "Pair",
    "QueryKeyRows",
    "RotaryRows",
    "Rotate",
    "Rows",
]
