"""The kernels: each operation once for the CPU (``.py``, Numba) and once for CUDA (``.cu``), with the same name, the same argument
block, the same arithmetic and the same bits.

This folder is shipped as ``fastpe.kernels`` and imports nothing of fastpe.
"""

if __name__ != "fastpe.kernels":
    # An unrelated project on the package index is called `kernels` too; ours must never shadow it.
    raise ImportError("fastpe's kernels are imported as fastpe.kernels, not as a top-level package")
