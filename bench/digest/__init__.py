"""Hash thousands of results of the public API, to show that a change of the core changes no bit and no message.

``python -m bench.digest OUT.json [--only TEXT]``, from the root of a checkout, writes {case: hash} and, in OUT.errors.json, the messages of
bad calls. A hash is the SHA-256 of types, shapes and bytes of what a case returned and of all arrays that it was given, followed by a
short hash of the form: strides, which results are inputs, how often tensors were written. ``--only`` runs the cases whose names contain
a text; their hashes do not depend on the other cases.

``python -m bench.digest --compare A.json B.json`` names the cases that differ, and ends with exit code 1 if there are any.

Every case runs twice on fresh arrays of the same values, as ``name`` and ``name#2``: the second run meets the caches that the first one
filled. Cases whose names begin with ``libm/`` also depend on the logarithms, powers, sigmoids or matrix products of NumPy or PyTorch, so
they are comparable only with the same versions on the same kind of machine.
"""
