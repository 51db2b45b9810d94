"""Calls from threads, forked children, dying interpreters and interrupted ones. One process runs the scenarios it is told to:

    python concurrency_scenarios.py NAME [NAME ...]

Prints ``ok NAME`` after each and leaves with 0; a wrong value raises, and a hang ends with the stacks of all threads and 1. Values
are compared bit for bit with those that one thread makes. What a scenario alone needs is imported by it: the order in which modules
register what they do before a fork is a part of what is tested, and torch takes seconds.
"""

from __future__ import annotations

import faulthandler
import signal
import sys

import scenarios_of_endings  # noqa: F401
import scenarios_of_limits  # noqa: F401
import scenarios_of_processes  # noqa: F401
import scenarios_of_threads  # noqa: F401
from scenario_tools import SCENARIOS, SECONDS

if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1)
    for _name in sys.argv[1:]:
        SCENARIOS[_name]()
        print("ok", _name, flush=True)
