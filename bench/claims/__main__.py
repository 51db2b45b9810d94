"""The command: run sections, print their claims, write them as JSON."""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

from fastpe._tools.benchmark.probes import settle_threads
from fastpe._tools.machine import describe, is_small

from .. import claims
from ..report import machine
from . import SECTIONS, Measuring


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.claims", description=claims.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one section")
    parser.add_argument("--quick", action="store_true", help="small arrays and few rounds: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    quick = given.quick or is_small()
    measuring = Measuring(settle_threads(), 0.02 if quick else 2.0, 64 if quick else 1)
    known = machine(measuring.threads)
    print(describe(known))
    if quick:
        print("Small arrays and few rounds: the figures mean nothing.")
    results: dict[str, list[dict[str, Any]]] = {}
    for name, section in SECTIONS.items():
        if given.only in (None, name):
            print(f"\n{name}: {section.__doc__}")
            begin = time.perf_counter()
            for claim in section(measuring):
                print(claim, flush=True)
                results.setdefault(name, []).append({**claim._asdict(), "holds": claim.holds})
            print(f"({time.perf_counter() - begin:.0f} s)")
            gc.collect()
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": known, "claims": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
