"""Which encoding keeps working past the length it was trained on? Small transformers, real tasks, and fastpe's own kernels in the loop.

``make lab`` trains, evaluates and reports; ``python -m bench.extrapolation --help`` says what may be chosen.
"""
