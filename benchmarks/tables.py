"""Turns committed results into docs/tables.md, so that no figure there is typed by hand.

`python benchmarks/tables.py` rewrites the page; a test compares it with the results.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from beam_tables import beam_exactness, beam_sampling, genrec_beauty
from common import RESULTS, ROOT
from drafter_tables import drafter, drafter_plan, live, live_table, recycling, small_drafter
from genrec_tables import (
    beauty_table,
    blend,
    blend_items,
    id_schemes,
    item_baseline,
    item_trie,
    sasrec,
)
from job_tables import (
    bookshop,
    controls_costs,
    controls_exactness,
    exactness_bits,
    exactness_bits_cost,
    movielens,
    sampled,
    structured,
)
from load_tables import load
from markdown import header as _header
from markdown import row as _row
from markdown import spread as _spread
from quality_tables import encoders, quality, quality_real
from questions import QUESTIONS
from ray_tables import pool_workers, ray
from step_tables import steps
from transformers_tables import transformers
from vllm_proposer_summary import vllm

PAGE = ROOT / "docs" / "tables.md"
Result = dict[str, Any]

_HEAD = """# Tables of all benchmarks

Made by `python benchmarks/tables.py` from the files in `benchmarks/results/`; every figure can be
measured again with the script named above its table (see `benchmarks/README.md`). Speedups are
ratios of wall time on the same prompts in the same run, drafting and prompts included: the median
(for replayed texts: all texts together), and in brackets the lowest and highest round. Not measured
so far: anything on a GPU, and what a result file below does not hold. In short, with plots:
[six questions](benchmarks.md).
"""


def render(folder: Path = RESULTS) -> str:
    """The page, from whatever results there are: those of each question, then all others."""
    asked = {name: q.title for q in QUESTIONS for name in q.results if name in SECTIONS}
    parts, last = [_HEAD], ""
    for name in [*asked, *(name for name in SECTIONS if name not in asked)]:
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        if (title := asked.get(name, "Also measured")) != last:
            parts.append(f"## {title}\n")
            last = title
        parts.append("#" + SECTIONS[name](result) + "\n" + _origin(result))
    return "\n".join(parts)


def _origin(result: Result) -> str:
    m = result["machine"]
    seed = result["seed"] if result["seed"] is not None else 0
    state = " with local changes" if m["dirty"] else ""
    return (
        f"Machine: {m['cores']} cores of {m['cpu']}, {m['gpu'] or 'no GPU'}, PyTorch {m['torch']}, "
        f"transformers {m['transformers']}; commit `{(m['commit'] or 'unknown')[:10]}`{state}, "
        f"seed {seed}, {m['date'][:10]}.\n"
    )


def _packed(result: Result) -> str:
    where = ", by matrix tiles" if result.get("tiles") else ""
    out = (
        f"## Weights laid out once{where}: `benchmarks/packed_weights.py`\n\n"
        f"Milliseconds of all linear layers of a Llama of {result['layers']} layers x 1024, head "
        "included, as `F.linear` runs them, in oneDNN's layout and in ours, of the weights as "
        "bfloat16. Ratio: oneDNN's time over ours.\n"
    )
    out += _header("dtype", "rows", "plain", "oneDNN's", "ours", "ratio")
    for dtype, by_rows in result["passes"].items():
        for r in by_rows:
            times = [r[f"{way}_ms"] for way in ("plain", "packed", "ours")]
            ratio = times[1]["median"] / times[2]["median"]
            out += _row(dtype, r["rows"], *map(_spread, times), f"{ratio:.2f}")
    return out


def _plain_steps(replay: Result) -> str:
    """How fast that baseline is beside transformers, where it was measured."""
    if "transformers_step_ms" not in replay:
        return ".\n"
    theirs = min(way["median"] for way in replay["transformers_step_ms"].values())
    ours = [t["1"]["plain_ms_per_call"] for t in replay["traces"].values() if "1" in t]
    if not ours:
        return ".\n"
    mine = statistics.median(ours)
    return (
        f", the best plain way on this machine: at batch 1 a plain step takes {mine:.1f} ms, in "
        f"transformers {theirs:.1f} ms ({theirs / mine:.2f} times as long).\n"
    )


def _replay(result: Result) -> str:
    out = (
        "## A large model writing real texts: `benchmarks/knowledge.py`\n\n"
        "A Llama of 341M parameters (24 layers x 1024, bfloat16, random weights) replays recorded "
        "LLM-written texts as its greedy output; the pool holds up to 2,000 other entities' texts. "
        "Against the same engine with an empty draft" + _plain_steps(result["replay"])
    )
    out += _header(
        "texts", "batch", "speedup", "without prompts", "tokens per call", "drafted per call"
    )
    for name, by_batch in result["replay"]["traces"].items():
        for batch, r in by_batch.items():
            out += _row(
                name, batch, f"{r['speedup_of_sums']:.2f} ({r['speedup']['low']:.2f} - "
                f"{r['speedup']['high']:.2f})", f"{r['decode_speedup_of_sums']:.2f}",
                f"{r['tokens_per_call']:.2f}", f"{r['drafted_per_call']:.1f}",
            )  # fmt: skip
    return out


def _live(result: Result) -> str:
    found = result["live"]
    out = (
        "## A small real model, live: `benchmarks/knowledge.py`\n\n"
        f"A 6.8M-parameter Llama trained on real profiles writes held-out ones; the pool holds "
        f"{found['warm_texts']} texts that it wrote for other entities. It repeats itself more "
        "than a large model does: read these figures as what they are.\n"
    )
    return out + live_table(found)


def _exactness(result: Result) -> str:
    out = (
        "## Strict is exact: `benchmarks/exactness.py`\n\n"
        "float32, pool drafting, token ids against `model.generate(do_sample=False)`.\n"
    )
    ways = {"by hand": result["batch"], **result.get("passes", {})}
    out += _header("passes", "batch", "identical texts")
    for way, by_batch in ways.items():
        for batch, r in by_batch.items():
            out += _row(way, batch, f"{r['identical']} of {r['prompts']}")
    return out


def _kill_resume(result: Result) -> str:
    out = (
        "## Interrupted jobs end in the same bytes: `benchmarks/kill_resume.py`\n\n"
        "A job of 2,000 records, killed with signal 9 and started again until it finishes.\n"
    )
    out += _header("job", "kills", "byte-identical to an uninterrupted run")
    for name, r in result["jobs"].items():
        kills = r["kills"] if isinstance(r["kills"], int) else len(r["kills"])
        out += _row(name.replace("_", " "), kills, "yes" if r["byte_identical"] else "no")
    return out


def _memory(result: Result) -> str:
    out = (
        "## Peak memory of small and large jobs: `benchmarks/memory.py`\n\n"
        "With a pool that grows as the job runs; the pool's index is what grows, and it stops at "
        "its byte limit (2 GiB unless set otherwise).\n"
    )
    out += _header("records", "peak memory, MB")
    for records, peak in result["peak_resident_bytes"].items():
        out += _row(f"{int(records):,}", f"{peak / 1e6:.0f}")
    return out


def _prompts(result: Result) -> str:
    out = (
        "## Rows of prompts: `benchmarks/prompts.py`\n\n"
        f"Counted, not timed: tokens of {result['model']}, {result['slots']} texts at a time. "
        "Computed are those that no earlier prompt has left: in the order of the input, as a job "
        "takes them, and at least. Padding: its part of all rows of the job's passes.\n"
    )
    columns = ("as they come", "in a job", "of all", "at least", "padding")
    out += _header("prompts", "number", "rows", *columns)
    for name, r in result["workloads"].items():
        rows = (r[n] for n in ("prompts", "rows", "computed_as_they_come", "computed"))
        share = f"{r['computed_share']:.0%}"
        out += _row(
            name, *map("{:,}".format, rows), share, f"{r['least']:,}", f"{r['padding']:.1%}"
        )
    if (s := result.get("shares")) is None:
        return out
    out += (
        f"\nParts of the processor time of a job of {s['texts']} texts of at most "
        f"{s['max_new_tokens']} tokens, {s['dtype']}, {s['threads']} threads:\n"
    )
    out += _header("", "seconds", "prompts", "verifying", "drafting")
    for way in ("plain", "drafted"):
        out += _row(way, *map(_spread, s[way].values()))
    return out


def _host_time(result: Result) -> str:
    out = (
        "## Laying out a pass: `benchmarks/host_time.py`\n\n"
        "Processor milliseconds of the host's part of a pass (trees cut, rows placed, what each "
        "sees, what the device is sent), beside the code before one kernel did it all: median and "
        "extremes.\n"
    )
    out += _header("texts x nodes", "rows", "before", "now", "times less", "its four walks alone")
    for r in result["passes"]:
        times, less = r["milliseconds"], r["times_less"]
        out += _row(
            f"{r['sequences']} x {r['nodes']}",
            f"{r['rows']:,}",
            _spread(times["before"]),
            _spread(times["now"]),
            f"{less['before']['median']:.1f}",
            f"{less['walks_before']['median']:.1f}",
        )
    return out


def _pool_rivals(result: Result) -> str:
    tries = any("trie" in trace["engines"] for trace in result["traces"].values())
    out = (
        f"## Draft pools against other draft structures{' and the published trie' * tries}"
        ": `benchmarks/pool.py`\n\n"
        f"Strict replay of {result['settings']['texts']} entities' texts, at most "
        f"{result['settings']['warm']:,} other entities' texts to draft from: tokens per step at "
        "each budget of draft nodes, then the time of a lookup (processor time, median and 99th "
        "percentile) and bytes per token of the texts held, as far as the engine can tell "
        "(otherwise as the process grew).\n"
    )
    for trace, found in result["traces"].items():
        budgets = list(next(iter(found["engines"].values())))
        out += f"\n**{trace}**: {found['warm_tokens']:,} tokens in the pool.\n"
        out += _header(
            "engine", *(f"budget {b}" for b in budgets), f"p50 / p99 us at {budgets[-1]}",
            "build us/token", "bytes/token",
        )  # fmt: skip
        for engine, by_budget in found["engines"].items():
            last = by_budget[budgets[-1]]
            p50, p99 = last["lookup_us_p50"]["median"], last["lookup_us_p99"]["median"]
            held = last["bytes_per_token"]
            held = f"{held:.0f}" if held is not None else f"~{last['rss_bytes_per_token']:.0f}"
            out += _row(
                engine, *(f"{by_budget[b]['tokens_per_step']:.2f}" for b in budgets),
                f"{p50:,.0f} / {p99:,.0f}", f"{last['build_us_per_token']:.2f}", held,
            )  # fmt: skip
        over = found["over_best_rival"]
        if over:
            best = found["best_rival"]
            ratios = [f"{over[b]:.3f} ({best[b]})" for b in budgets if b in over]
            out += "\nOurs (pool) over the best rival: " + ", ".join(ratios) + ".\n"
    missing = [f"{name}: {reason}" for name, reason in result["skipped"].items()]
    return out + ("\nNot run: " + "; ".join(missing) + ".\n" if missing else "")


def _pool_refresh(result: Result) -> str:
    out = (
        "## What an entity's previous text is worth: `benchmarks/pool.py --part refresh`\n\n"
        "Chains of updated texts: tokens per step without the previous text, with earlier texts in "
        "the pool, with the previous text as a level of its own, and with both.\n"
    )
    for trace, found in result["traces"].items():
        budgets = list(next(iter(next(iter(found["engines"].values())).values())))
        out += f"\n**{trace}**\n" + _header("engine", "way", *(f"budget {b}" for b in budgets))
        for engine, ways in found["engines"].items():
            for way, by_budget in ways.items():
                rates = [f"{by_budget[b]['tokens_per_step']:.2f}" for b in budgets]
                out += _row(engine, way.replace("_", " "), *rates)
    return out


def _pool_groups(result: Result) -> str:
    out = (
        "## What grouping is worth: `benchmarks/pool.py --part groups`\n\n"
        "The same texts and budgets: one index over all, the sequence's own group only, or both "
        "levels; groups by attribute, by collaborative filtering (where given), or at random.\n"
    )
    for trace, found in result["traces"].items():
        out += f"\n**{trace}**\n"
        budgets = list(found["groupings"]["global"]["all"])
        out += _header("grouping", "groups", "drafts from", *(f"budget {b}" for b in budgets))
        for way, engines in found["groupings"].items():
            for engine, by_budget in engines.items():
                if engine == "groups":
                    continue
                rates = [f"{by_budget[b]['tokens_per_step']:.3f}" for b in budgets]
                told = {"all": "all", "group": "own group", "pool": "own group and all"}[engine]
                out += _row(way, engines.get("groups", 1), told, *rates)
    return out


def _pool_scale(result: Result) -> str:
    out = (
        "## Large pools: `benchmarks/pool_scale.py`\n\n"
        "The synthetic workload; lookups in contexts of texts that are not in the pool, index "
        "mapped from disk, processor time, a tree from the pool of all and the running text.\n"
    )
    sizes = result["sizes"]
    out += _header("", *sizes)
    rows: list[tuple[str, Any]] = [
        ("tokens", lambda s: f"{s['tokens']:,}"),
        ("build, us per token", lambda s: f"{s['build_us_per_token']:.2f}"),
        ("closed index, bytes per token", lambda s: f"{s['closed_bytes_per_token']:.1f}"),
        ("all files, bytes per token", lambda s: f"{s['file_bytes_per_token']:.1f}"),
        ("open, ms", lambda s: f"{s['open_ms']['median']:.1f}"),
        ("open with checksums, ms", lambda s: f"{s['open_with_checksums_ms']:,.0f}"),
        (
            "memory of two readers over one",
            lambda s: (
                f"{s['readers']['proportional_bytes_all'] / s['readers']['mapped_bytes_each']:.2f}"
            ),
        ),
        ("fresh texts, us per token", lambda s: f"{s['growth']['open_us_per_token']:.2f}"),
        ("fresh texts, bytes per token", lambda s: f"{s['growth']['open_bytes_per_token']:.0f}"),
        (
            "one by one with settling, us per token",
            lambda s: f"{s['growth']['one_by_one_with_settling_us_per_token']:.2f}",
        ),
    ]
    for budget in next(iter(sizes.values()))["lookup"]:
        rows.append(
            (
                f"lookup of {budget} nodes, p50 / p99 us",
                lambda s, b=budget: f"{s['lookup'][b]['p50_us']} / {s['lookup'][b]['p99_us']}",
            )
        )
    for name, cell in rows:
        out += _row(name, *(cell(s) for s in sizes.values()))
    return out


SECTIONS = {
    "first-job-bookshop": bookshop,
    "first-job-bookshop-penalty": bookshop,
    "first-job-movielens": movielens,
    "first-job-movielens-penalty": movielens,
    "first-job-movielens-tiles": movielens,
    "first-job-movielens-penalty-tiles": movielens,
    "knowledge-replay": _replay,
    "knowledge-live": _live,
    "live-smollm2-user": live,
    "live-smollm2-item": live,
    "live-smollm2-item-avx2": live,
    "sampled": sampled,
    "pool-rivals": _pool_rivals,
    "pool-published": _pool_rivals,
    "pool-scale": _pool_scale,
    "pool-refresh": _pool_refresh,
    "pool-groups": _pool_groups,
    "pool-workers": pool_workers,
    "packed-weights": _packed,
    "packed-weights-tiles": _packed,
    "steps": steps,
    "steps-900": steps,
    "host-time": _host_time,
    "prompts": _prompts,
    "drafter-smollm2-item": drafter,
    "drafter-smollm2-item-1000": drafter,
    "drafter-smollm2-item-batch8": drafter,
    "drafter-smollm2-item-nodes16": drafter,
    "drafter-smollm2-user-nodes16": drafter,
    "drafter-smollm2-user-sampled": drafter,
    "drafter-profile-lm-user": drafter,
    "drafter-gemma3-item": drafter,
    "drafter-small": small_drafter,
    "drafter-plan": drafter_plan,
    "recycling": recycling,
    "exactness": _exactness,
    "exactness-bits": exactness_bits,
    "exactness-bits-frozen": exactness_bits,
    "exactness-bits-cost": exactness_bits_cost,
    "controls-exactness": controls_exactness,
    "controls-costs": controls_costs,
    "structured": structured,
    "transformers": transformers,
    "kill-resume": _kill_resume,
    "memory": _memory,
    "beauty-table": beauty_table,
    "item-baseline": item_baseline,
    "blend-beauty": blend,
    "blend-items-beauty": blend_items,
    "sasrec-beauty": sasrec,
    "blend-items-ml100k": blend_items,
    "sasrec-ml100k": sasrec,
    "id-schemes-ml100k": id_schemes,
    "item-trie": item_trie,
    "beam-exactness": beam_exactness,
    "beam-sampling": beam_sampling,
    "genrec-beauty": genrec_beauty,
    "genrec-beauty-timed": genrec_beauty,
    "genrec-grown-1": genrec_beauty,
    "genrec-grown-8": genrec_beauty,
    "genrec-lora": genrec_beauty,
    "genrec-lora-timed": genrec_beauty,
    "load": load,
    "ray": ray,
    "vllm": vllm,
    "encoders": encoders,
    "quality-ml100k": quality,
    "quality-smollm2": quality_real,
}


if __name__ == "__main__":
    PAGE.write_text(render())
    print(PAGE.relative_to(ROOT))
