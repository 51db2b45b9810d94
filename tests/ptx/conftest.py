"""What the tests of the interpreter share."""

from __future__ import annotations

import pytest
from ptx_programs import CUDA, compile_cuda


@pytest.fixture(params=(75, 90, 120), ids="compute_{}".format)
def kernels(request):
    return compile_cuda(CUDA, request.param).entries
