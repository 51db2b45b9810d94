"""The command: run the cases and write their hashes, or compare two files."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

from bench import digest

from .comparing import compare, errors_file


def record(path: Path, only: str) -> None:
    """Run the cases whose names contain a text, and write hashes and error messages."""
    import fastpe  # comparing needs no fastpe

    from .inputs import torch
    from .recording import Recorder
    from .sections import SECTIONS

    warnings.simplefilter("ignore")
    if torch is not None:
        torch.set_num_threads(1)  # sums in one order
    recorder = Recorder(only)
    for section in SECTIONS:
        started = time.perf_counter()
        section(recorder)
        print(f"{section.__name__}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    for file, content in ((path, recorder.hashes), (errors_file(path), recorder.errors)):
        file.write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")
    print(f"fastpe of {fastpe.__file__}: {len(recorder.hashes)} digests, {len(recorder.errors)} of them errors")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.digest", description=digest.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json", help="write the hashes there")
    parser.add_argument("--only", metavar="TEXT", help="run the cases whose names contain this")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="compare two files instead")
    given = parser.parse_args(arguments)
    if (given.out is None) == (given.compare is None) or (given.compare and given.only is not None):
        parser.error("give either OUT.json (and --only) or --compare A.json B.json")
    if given.compare:
        return 1 if compare(*given.compare) else 0
    record(given.out, given.only or "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
