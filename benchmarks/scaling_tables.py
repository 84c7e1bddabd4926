"""Turns benchmarks/results/scaling.json into the tables of docs/scaling.md.

`python benchmarks/scaling_tables.py` rewrites what stands between the page's marks; a test compares
it with the result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from common import RESULTS, ROOT
from markdown import header, row

PAGE = ROOT / "docs" / "scaling.md"
Result = dict[str, Any]
_REGION = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str, result: Result) -> str:
    """The page with its tables made anew. Raises KeyError for a mark without a table."""
    return _REGION.sub(lambda m: m[1] + TABLES[m[2]](result) + "\n" + m[3], page)


def _one_gpu(result: Result) -> str:
    out = header(
        "one GPU", "plain, texts/s", "slots", "strict", "slots x nodes", "relaxed",
        "slots x nodes", "prompts' share", "host's share", "$ per million texts",
    )  # fmt: skip
    for name, modes in result["one_gpu"].items():
        plain, strict, loose = modes.values()
        out += row(
            name, f"{plain['texts_per_second']:.1f}", plain["slots"],
            f"{strict['over_plain']:.2f}", f"{strict['slots']} x {strict['nodes']}",
            f"{loose['over_plain']:.2f}", f"{loose['slots']} x {loose['nodes']}",
            _each(modes.values(), "prompt_share", "{:.0%}"),
            _each(modes.values(), "host_share", "{:.0%}"),
            _each(modes.values(), "dollars_per_million", "{:.0f}"),
        )  # fmt: skip
    return out


def _checks(result: Result) -> str:
    out = header("GPU", "model", "slots", "published, tokens/s", "computed", "source")
    for r in result["checks"]:
        out += row(
            r["gpu"], r["model"], r["slots"], f"{r['published']:.0f}", f"{r['computed']:.0f}",
            r["source"],
        )  # fmt: skip
    return out


def _passes(result: Result) -> str:
    out = header(
        "model, H100", "texts at once", "limit, ms", "eager, estimated", "here",
        "frozen, estimated", "here", "frozen over the limit",
    )  # fmt: skip
    for r in result["passes"]:
        eager, frozen = r["eager"], r["frozen"]
        out += row(
            r["model"], r["slots"], f"{r['limit_ms']:.2f}",
            f"{eager['low']:g} - {eager['high']:g}", f"{eager['computed']:.1f}",
            f"{frozen['low']:g} - {frozen['high']:g}", f"{frozen['computed']:.2f}",
            f"{frozen['computed'] / r['limit_ms']:.2f}",
        )  # fmt: skip
    return out


def _jobs(result: Result) -> str:
    out = header(
        "model", "GPUs", "texts/s", "days", "GPU-hours", "$", "GPUs wait", "driver busy",
        "failures a day", "lost to them",
    )  # fmt: skip
    jobs: dict[tuple[str, int], list[Result]] = {}
    for r in result["jobs"]:
        jobs.setdefault((r["model"], r["gpus"]), []).append(r)
    for (model, gpus), modes in jobs.items():
        out += row(
            model, gpus, _each(modes, "texts_per_second", "{:,.0f}"),
            _each(modes, "days", "{:.2f}"), _each(modes, "gpu_hours", "{:,}"),
            _each(modes, "dollars", "{:,}"), _each(modes, "waiting", "{:.1%}"),
            _each(modes, "driver_busy", "{:.0%}"), f"{modes[0]['failures_per_day']:.3f}",
            f"{modes[0]['expected_loss']:.2%}",
        )  # fmt: skip
    return out


def _changes(result: Result) -> str:
    out = header(
        "change", "GPUs", "texts/s", "days", "$", "GPUs wait", "driver busy", "failures a day",
        "lost to them",
    )  # fmt: skip
    for name, jobs in result["changes"].items():
        for r in jobs:
            label = name
            if "slowness" in r:
                label = f"2 % of workers {r['slowness']:g} times slower, lag {r.get('lag', 2)}"
            out += row(
                label, r["gpus"], f"{r['texts_per_second']:,.0f}", f"{r['days']:.2f}",
                f"{r['dollars']:,}", f"{r['waiting']:.1%}", f"{r['driver_busy']:.0%}",
                f"{r['failures_per_day']:.3f}", f"{r['expected_loss']:.2%}",
            )  # fmt: skip
    return out


def _each(modes: Iterable[Result], name: str, form: str) -> str:
    """One figure of plain, strict and relaxed."""
    return " / ".join(form.format(mode[name]) for mode in modes)


def _pools(result: Result) -> str:
    out = header(
        "pool", "tokens", "closed, once per node", "grown, in 8 workers", "of its memory",
        "to build", "to learn, each worker",
    )  # fmt: skip
    for name, r in result["pools"]["sizes"].items():
        out += row(
            name, f"{r['tokens'] / 1e6:,.0f}M", _bytes(r["closed_bytes_per_node"]),
            _bytes(r["grown_bytes_per_node"]), f"{r['grown_share_of_memory']:.1%}",
            _hours(r["build_hours"]),
            _hours(r["learn_hours_per_worker"]),
        )  # fmt: skip
    return out


def _growth(result: Result) -> str:
    out = header("texts", "tokens in the pool", "tokens per pass, 8 nodes", "per doubling")
    for name, r in result["pools"]["per_doubling"].items():
        out += row(
            name, " / ".join(f"{t / 1e3:,.0f}k" for t in r["tokens"]),
            " / ".join(f"{s:.2f}" for s in r["tokens_per_step"]), f"+{r['per_doubling']:.2f}",
        )  # fmt: skip
    return out


def _exchange(result: Result) -> str:
    out = header(
        "GPUs", "texts/s", "read per node", "read from storage", "of a worker's time, to read",
        "to learn without a limit",
    )  # fmt: skip
    for r in result["exchange"]:
        out += row(
            r["gpus"], f"{r['texts_per_second']:,}", f"{_bytes(r['bytes_per_second_per_node'])}/s",
            f"{_bytes(r['bytes_per_second_of_storage'])}/s",
            f"{r['reading_share_of_a_worker']:.1%}", f"{r['learning_share_without_limit']:.0%}",
        )  # fmt: skip
    return out


def _inputs(result: Result) -> str:
    out = header("number", "value", "kind", "source")
    for name, r in result["inputs"].items():
        value = f"{r['value']:,.0f}" if r["value"] >= 1000 else f"{r['value']:.4g}"
        out += row(name.replace("_", " "), f"{value} {r['unit']}", r["kind"], r["source"])
    for r in result["machines"]:
        facts = [f"{k} {v:,.4g}" for k, v in r.items() if k not in ("name", "source")]
        out += row(r["name"], ", ".join(facts), "published", r["source"])
    return out


def _origin(result: Result) -> str:
    m = result["machine"]
    state = " with local changes" if m["dirty"] else ""
    return (
        f"\nMade at commit `{(m['commit'] or 'unknown')[:10]}`{state}, seed {result['seed']}, "
        f"{m['date'][:10]}.\n"
    )


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _hours(hours: float) -> str:
    return f"{3600 * hours:.0f} s" if hours < 0.1 else f"{hours:.1f} h"


#: What stands between the page's marks, by the name in the mark.
TABLES: dict[str, Callable[[Result], str]] = {
    "passes": _passes,
    "one_gpu": _one_gpu,
    "checks": _checks,
    "jobs": _jobs,
    "changes": _changes,
    "pools": _pools,
    "growth": _growth,
    "exchange": _exchange,
    "inputs": _inputs,
    "origin": _origin,
}


if __name__ == "__main__":
    found = json.loads((RESULTS / "scaling.json").read_text())
    PAGE.write_text(render(PAGE.read_text(), found))
    print(PAGE.relative_to(ROOT))
