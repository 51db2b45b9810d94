"""Which encoding keeps working past the length it was trained on? Small transformers, real tasks, fastpe's kernels in the loop.

``make lab`` trains, evaluates and reports; ``python -m bench.extrapolation --help`` lists its options.
"""
