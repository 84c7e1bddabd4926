"""The table of the service under load in docs/tables.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row


def load(result: dict[str, Any]) -> str:
    """Throughput and latency, then the faults."""
    found = result["load"]
    out = (
        "## The service under load: `benchmarks/load.py`\n\n"
        f"The embedded models behind `draftrec serve --demo`, k = {result['k']}, clients in a "
        f"second process; {found['equal']} of {found['compared']} answers are the same alone and "
        "among all clients.\n"
    )
    out += header("clients", "seconds", "requests/s", "p50 ms", "p99 ms", "answered", "errors")
    for name in ("one_at_a_time", "concurrent"):
        r = found[name]
        out += row(
            r["clients"], f"{r['seconds']:.0f}", f"{r['per_second']:.0f}", f"{r['ms_p50']:.0f}",
            f"{r['ms_p99']:.0f}", f"{r['answered']:,} of {r['requests']:,}", r["errors"],
        )  # fmt: skip
    if turns := result.get("in_turns"):
        before, now = turns["before"], turns["now"]
        out += (
            f"\nIn turns with the service of commit {turns['commit'][:7]}, {now['clients']} "
            f"clients, {len(turns['ratios'])} rounds: {before['per_second']:.0f} requests/s then, "
            f"{now['per_second']:.0f} now; {turns['ratio']:.2f} times as many (median of "
            f"{', '.join(f'{x:.2f}' for x in turns['ratios'])}).\n"
        )
    if texts := result.get("texts"):
        out += "\nTexts of 48 tokens at most, whole and streamed in turns:\n\n"
        out += header("texts", "texts/s", "tokens/s", "p50 ms", "p99 ms", "first p50", "first p99")
        for name, r in texts.items():
            first = [f"{r[key]:.0f}" if r[key] else "" for key in ("first_ms_p50", "first_ms_p99")]
            out += row(
                name, f"{r['per_second']:.1f}", f"{r['tokens_per_second']:.0f}",
                f"{r['ms_p50']:.0f}", f"{r['ms_p99']:.0f}", *first,
            )  # fmt: skip
    good = [name.replace("_", " ") for name, fault in result["faults"].items() if fault["ok"]]
    bad = [name.replace("_", " ") for name, fault in result["faults"].items() if not fault["ok"]]
    out += "\nFaults survived as they should be: " + ", ".join(good) + ".\n"
    return out + ("Not survived: " + ", ".join(bad) + ".\n" if bad else "")
