"""The short table at the end of the output."""

from __future__ import annotations

from typing import Any

from .records import STATUSES


def summary(found: list[dict[str, Any]]) -> str:
    """How many checks of each stage passed; what failed, and why; microseconds; shares of a copy."""
    lines = []
    for stage in dict.fromkeys(record["stage"] for record in found):
        of_stage = [record["status"] for record in found if record["stage"] == stage]
        counts = [f"{of_stage.count(status)} {status}" for status in STATUSES if status in of_stage]
        lines.append(f"{stage:10} " + ", ".join(counts))
    for record in found:
        name = " ".join(filter(None, [f"{record['stage']}: {record['check']}", record.get("dtype")]))
        if record["status"] == "fail":
            lines.append(f"FAILED {name}: {str(record.get('error', ''))[:240]}")
            lines += [f"       {line[:160]}" for line in record.get("stderr", [])[-3:]]
        elif record["status"] == "skip":
            lines.append(f"left out {name}: {record.get('reason')}")
        elif "host_us" in record:
            lines.append(
                f"{record['check']:44} {record['host_us']:8.1f} us of the CPU, {record.get('gpu_us', '-')} us of the GPU"
            )
        elif "of_copy" in record:
            shares = ", ".join(f"{rival} {share}" for rival, share in record["of_copy"].items())
            lines.append(f"{name:60} {record['copy_GBps']} GB/s of a copy: {shares}")
    return "\n".join(lines)
