"""A launch for several architectures runs each kernel that differs, from the same memory, and compares what they leave."""

import numpy as np
import pytest
from ptx import Memory, PTXError
from ptx_programs import argument, handwritten_text
from ptx_variants import varied

ADD = "ld.param.u64 %d0, [out]; ld.global.u32 %r0, [%d0]; add.u32 %r0, %r0, 1; st.global.u32 [%d0], %r0;"
ADD_OTHERWISE = ADD.replace("add.u32 %r0, %r0, 1", "sub.u32 %r0, %r0, 4294967295")
NOTHING = "ld.param.u64 %d0, [out];"
ZERO = f"{NOTHING} mov.u32 %r0, 0; st.global.u32 [%d0], %r0;"


def run(*bodies, initialised=True):
    """Launch what has such a body for each target, on a 7; return what the array holds then, and what ran how often."""
    texts = [handwritten_text(body, target=f"sm_{75 + k}") for k, body in enumerate(bodies)]
    memory, x = Memory(), np.array([7 if initialised else 0], np.uint32)
    memory.add(np.arange(3), name="of another kernel")
    address = memory.add(x, name="x", initialised=initialised)
    return x, varied(texts)["k"].launch(memory, (1,), (1,), [argument(address)])


def test_each_kernel_that_differs_runs_from_the_same_memory():
    x, executed = run(ADD, ADD, ADD_OTHERWISE)
    assert x.tolist() == [8]
    assert (executed["add.u32"], executed["sub.u32"]) == (1, 1)


def test_equal_kernels_run_once():
    x, executed = run(ADD, ADD, ADD)
    assert x.tolist() == [8]
    assert executed["add.u32"] == 1


@pytest.mark.parametrize("wrong", [ADD.replace("%r0, 1", "%r0, 2"), NOTHING])
def test_a_kernel_that_leaves_other_bytes_fails(wrong):
    for bodies, targets in (((ADD, wrong), "sm_76"), ((wrong, ADD, ADD), "sm_76 and sm_77"), ((ADD, ADD, wrong), "sm_77")):
        with pytest.raises(PTXError, match=f"k: {targets} leaves other bytes in x than sm_75"):
            run(*bodies)


def test_a_byte_that_one_kernel_leaves_unwritten_fails():
    with pytest.raises(PTXError, match="sm_76 leaves other bytes in x"):
        run(ZERO, NOTHING, initialised=False)
    with pytest.raises(PTXError, match="sm_76: k: read of uninitialised memory: x"):  # though the first has written it
        run(ZERO, ADD, initialised=False)


def test_a_fault_names_the_target():
    with pytest.raises(PTXError, match="sm_77: k: misaligned"):
        run(ADD, ADD, ADD.replace("[%d0]", "[%d0+1]"))
