"""Run one kernel on memory: Numba for the host, CUDA for a device."""
