"""One lock for what a fork must not interrupt.

A child forked while another thread imports a module or compiles inherits that module's lock, or the compiler's, with nobody to
release it, and would wait for ever. So fastpe imports and compiles lazily under this lock only, and a fork waits for it.
"""

from __future__ import annotations

import logging  # noqa: F401  (a fork's "before" hooks run last registered first: logging's must not hold its lock while ours waits)
import os
import threading

unforkable = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=unforkable.acquire, after_in_parent=unforkable.release, after_in_child=unforkable.release)
