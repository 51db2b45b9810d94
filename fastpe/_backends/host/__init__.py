"""Host memory: kernels compiled by Numba, run on the calling thread and on helpers. ``launch`` is the backend.

``import fastpe`` needs only ``pool`` from here; the rest, a third of the time of that import, is loaded when it is first used.
"""
