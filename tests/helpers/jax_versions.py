"""What tests ask of JAX, in the oldest version that fastpe supports and in the newest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import pytest

try:
    from jax import enable_x64, shard_map
except ImportError:  # before 0.8
    from jax.experimental import enable_x64 as enable_x64
    from jax.experimental.shard_map import shard_map as older_shard_map

    def shard_map(function: Any, *, check_vma: bool = True, **options: Any) -> Any:
        if check_vma:
            pytest.skip(f"shard_map of JAX {jax.__version__} checks its own operations only, and others need check_rep=False")
        return older_shard_map(function, check_rep=check_vma, **options)


KINDS = ["Auto", "Explicit"]  # of a mesh's axes


@contextlib.contextmanager
def mesh_of(kind: str = "Auto") -> Iterator[Any]:
    """Two by two devices, as the mesh that is set."""
    if len(jax.devices()) < 4:
        pytest.fail("XLA_FLAGS came too late: JAX has fewer than four devices")
    if hasattr(jax, "set_mesh"):
        made = jax.make_mesh((2, 2), ("dp", "sp"), axis_types=(getattr(jax.sharding.AxisType, kind),) * 2)
        with jax.set_mesh(made):
            yield made
    elif kind == "Auto":
        made = jax.make_mesh((2, 2), ("dp", "sp"))
        with made:
            yield made
    else:
        pytest.skip(f"JAX {jax.__version__} has no explicit axes")
