"""The kernels: each operation once for the CPU (``.py``, Numba) and once for CUDA (``.cu``), with the same name, the same argument
block, the same arithmetic and the same bits.

This folder is shipped as ``fastpe.kernels`` and imports nothing of fastpe.
"""

if __name__ != "fastpe.kernels":
    # From a clone's root Hugging Face's library finds this folder where it looks for another project, and passes over an old version.
    __version__ = "0"
