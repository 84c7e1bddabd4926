"""The tables of beam search in docs/tables.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row, spread

Result = dict[str, Any]


def beam_exactness(result: Result) -> str:
    """Drafted against plain beams over drawn cases."""
    out = (
        "## Drafted beams are the plain ones: `benchmarks/beam_exactness.py`\n\n"
        f"{result['cases']:,} drawn cases, {result['searches']:,} searches, "
        f"{result['mismatches']} mismatches. Identical are items, order and the bits of scores; "
        f"{result.get('rounded', 0)} searches have scores that are equal up to rounding only, "
        f"{result['near_ties']} such beams in another order.\n"
    )
    out += header("drafts", "identical", "near-ties", "target calls", "plain")
    for kind, r in sorted(result["by_draft"].items()):
        counts = f"{r.get('identical', 0):,}", r.get("near_tie", 0) + r.get("rounded", 0)
        out += row(kind, *counts, f"{r['target_calls']:.2f}", f"{r['plain_calls']:.2f}")
    return out


def beam_sampling(result: Result) -> str:
    """What samples are samples of."""
    out = (
        "## What sampled beams are a sample of: `benchmarks/beam_sampling.py`\n\n"
        f"{result['items']} items of known probability, {result['users']:,} users with one prompt. "
        "Kept mass: the probability of the K kept items together, beside that of exact sampling "
        "without replacement. Gap: the greatest difference of any item's frequency from the exact "
        "one, also in standard errors of a right one (above 4 is no accident).\n"
    )
    for setting, rows in result["runs"].items():
        out += f"\n**{setting}**\n"
        out += header("verification", "kept mass", "exact", "gap", "standard errors", "calls")
        for name, r in rows.items():
            gap, errors = r["greatest_gap"], r["greatest_gap_in_standard_errors"]
            out += row(
                name, f"{r['kept_mass']:.3f}", f"{r['exact_kept_mass']:.3f}", f"{gap:.3f}",
                f"{errors:.1f}", f"{r['target_calls']:.2f}",
            )  # fmt: skip
    return out


def _large_target(result: Result) -> str:
    """A sentence on where a target came from that nobody trains whole on a CPU."""
    trained = result.get("trained", {}).get("target", {})
    if trained.get("lora"):
        return (
            f"The target is a language model with adapters of rank {trained['lora']['rank']} and "
            f"new rows for the ids' tokens, learnt in {trained['seconds'] / 60:.0f} minutes "
            "(benchmarks/README.md says of how many users), then merged.\n"
        )
    return (
        "The target is a small one set into a Llama of a language model's size that computes the "
        "same function (`benchmarks/grown.py`): passes cost what they cost there.\n"
    )


def genrec_beauty(result: Result) -> str:
    """Speculative beams on a trained target, all users and timed ones."""
    sizes = ", ".join(f"{name} {n:,}" for name, n in result["parameters"].items())
    s = result["settings"]
    size = result["parameters"]["target"]
    large = f", {size / 1e6:.0f} million weights, {s['batch']} at once" if size > 5e7 else ""
    out = (
        f"## Recommending on Amazon Beauty{'' if result['whole'] else ', timed'}{large}: "
        f"`benchmarks/genrec.py`\n\n{_large_target(result) if large else ''}"
    )
    out += (
        f"Target and drafts trained on this data on a CPU (parameters: {sizes}; the number behind "
        f"a draft's name is its epochs); N = {s['draft_beams']}, {s['batch']} users at once, "
        f"{s['dtype']}. Users with a history: {result['users']:,}. Strict and relaxed draft all "
        "levels they can, auto what pays.\n"
    )
    who = f"the first {s['limit']:,} users" if s["limit"] else "all users"
    if result["whole"]:
        out += (
            f"\n{who.capitalize()}, against plain search; Recall and NDCG count every test item. "
            "Behind N= stand widths of all levels but the last.\n"
        )
    for k, engines in result["whole"].items():
        out += f"\n**K = {k}, {who}**\n"
        out += header(
            "engine", "target calls", "AS@K", "draft rows", "same list as plain", "Recall@K",
            "NDCG@K", "invalid",
        )  # fmt: skip
        for name, r in engines.items():
            out += row(
                name, f"{r['target_calls']:.3f}", f"{r['accepted_steps_per_call']:.3f}",
                f"{r['drafted']:.0f}", f"{r['agreement']['exact_match_rate']:.4f}",
                f"{r['recall'][k]:.4f}",
                f"{r['ndcg'][k]:.4f}", f"{r['invalid_rate']:.4f}",
            )  # fmt: skip
    for k, engines in result["timed"].items():
        users = next(iter(engines.values()))["users"]
        out += f"\n**K = {k}, timed: {users} users, engines in turn**\n"
        out += header("engine", "ms per user", "WS@K over plain", "over HF, trie mask", "over HF")
        for name, r in engines.items():
            over = (spread(r["speedup"][b]) for b in ("plain", "hf_trie_mask", "hf_prefix_fn"))
            out += row(name, f"{r['ms_per_user']:.2f}", *over)
    if waits := result.get("latency"):
        out += (
            "\nA user alone: whose prompt is new to the cache, and who was there an item ago; "
            "50th / 99th percentile in ms.\n"
        )
        out += header("K", "engine", "new", "returning")
        for k, engines in waits.items():
            for name, kinds in engines.items():
                cells = (f"{kinds[x]['p50_ms']:.1f} / {kinds[x]['p99_ms']:.1f}" for x in kinds)
                out += row(k, name, *cells)
    return out
