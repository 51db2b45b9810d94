"""The tables of the documentation from what a GPU showed.

``python -m bench.gpu.report gpu.jsonl docs/performance.md`` rewrites the section between the two markers; ``--print`` prints it instead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..report import ReportError, rewrite

MARKERS = "<!-- gpu:begin -->", "<!-- gpu:end -->"
NOT_MEASURED = "Not measured yet."
COMMAND = "make gpu"
Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    """The findings in a file."""
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
    except OSError as error:
        raise ReportError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ReportError(f"{path} is not JSON, one object a line ({error}); write it with: {COMMAND}") from None
    if not found or not all(isinstance(record, dict) and {"stage", "check", "status"} <= set(record) for record in found):
        raise ReportError(f"{path} does not hold findings; write it with: {COMMAND}")
    return found


def section(found: list[Record]) -> str:
    """The Markdown between the markers. What failed is named, beside what was measured."""
    card = next((record for record in found if record["check"] == "card" and record["status"] == "ok"), None)
    if card is None:
        return NOT_MEASURED
    parts = [machine(found, card)]
    shares = [record for record in found if record.get("of_copy") and record["status"] == "ok"]
    if shares:
        parts.append("Time on the GPU, as a share of a copy of the same bytes from device to device: 1 is as fast as the copy.")
        parts.append(table_of_shares(shares))
    hosts = [record for record in found if "host_us" in record and record["status"] == "ok"]
    if hosts:
        parts.append("Microseconds of the CPU until a call returns, and of the GPU, for a step of decoding of 32 sequences.")
        parts.append(table_of_calls(hosts))
    failed = [f"{record['stage']}: {record['check']}" for record in found if record["status"] == "fail"]
    passed = sum(record["status"] == "ok" for record in found)
    parts.append(f"{passed} checks passed" + (f"; {len(failed)} failed: {', '.join(failed)}." if failed else ", none failed."))
    return "\n\n".join(parts)


def machine(found: list[Record], card: Record) -> str:
    """Card, driver, versions, copy bandwidth and command in one line."""
    known = next((record for record in found if record["check"] == "versions"), {})
    versions = [f"{name} {value}" for name, value in known.get("versions", {}).items() if "not here" not in value]
    bandwidth = next((record for record in found if record["check"] == "bandwidth" and "copy_GBps" in record), None)
    copies = f", copies {bandwidth['copy_GBps']} GB/s" if bandwidth else ""
    return f"{card['name']}, CUDA {card['driver'] // 1000}{copies}; {', '.join(versions)}. Command: `{COMMAND}`."


def table_of_shares(shares: list[Record]) -> str:
    contenders = list(dict.fromkeys(name for record in shares for name in record["of_copy"]))
    lines = ["| call | dtype | " + " | ".join(contenders) + " |", "|---|---|" + "--:|" * len(contenders)]
    for record in shares:
        cells = [f"{record['of_copy'][name]:.2f}" if name in record["of_copy"] else "-" for name in contenders]
        lines.append(f"| `{record['check']}` | {record['dtype']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table_of_calls(calls: list[Record]) -> str:
    lines = ["| call | CPU | GPU |", "|---|--:|--:|"]
    lines += [f"| {record['check']} | {record['host_us']:.1f} | {record.get('gpu_us', '-')} |" for record in calls]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m bench.gpu.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("findings", type=Path, help="what python -m bench.gpu wrote")
    parser.add_argument("document", type=Path, nargs="?", help="file with the two markers")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the section and write nothing")
    given = parser.parse_args(arguments)
    if given.document is None and not given.only_print:
        parser.error("name the document to rewrite, or use --print")
    try:
        content = section(read(given.findings))
        if given.only_print:
            print(content)
        else:
            given.document.write_text(rewrite(given.document.read_text(), content, MARKERS))
    except (ReportError, OSError) as error:
        raise SystemExit(f"report: {error}") from None


if __name__ == "__main__":
    main()
