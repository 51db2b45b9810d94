"""Run kernels on memory: with Numba on the host, with CUDA on a device. Loads no backend before it is needed."""

from .base import Backend, Prepared, backend_of, backend_on, clear

__all__ = ["Backend", "Prepared", "backend_of", "backend_on", "clear"]
