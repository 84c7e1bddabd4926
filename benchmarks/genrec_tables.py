"""The tables of generative recommendation in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row, spread

Result = dict[str, Any]
_KS = (1, 3, 5, 10, 20)


def beauty_table(result: Result) -> str:
    """The data table, ours beside the reference."""
    out = (
        "## The same Beauty: `benchmarks/beauty_table.py`\n\n"
        "Amazon Beauty as AtSpeed uses it (rating 4 and more, one split in time for all users), "
        f"computed by draftrec: {result['agree']} of {result['compared']} figures round to those "
        "of the data in AtSpeed's repository.\n"
    )
    out += header("figure", "reference", "computed", "agrees")
    for name, r in result["figures"].items():
        ours = r["ours"]
        ours = f"{ours:,}" if isinstance(ours, int) else f"{ours:.4g}"
        known = r["reference"]
        known = f"{known:,}" if known >= 1 else f"{known:.3g}"
        out += row(name, known, ours, "yes" if r["agrees"] else "no")
    return out


def item_baseline(result: Result) -> str:
    """Recall and NDCG of what needs no model."""
    test = result["test"]
    users = next(iter(test.values()))["all items"]["multi"]["users"]
    out = (
        "## Recommending without a model: `benchmarks/item_baseline.py`\n\n"
        f"Amazon Beauty, test part, {users:,} users, every test item a target, Recall@K / NDCG@K. "
        f"Tuned on the valid part ({result['settings']['objective']}; {result['tried']} settings "
        "tried); fitted to the train part, the last row to train and valid. Nobody takes an item "
        "twice in these data, so leaving out what a user has is a fair help, and shown apart.\n"
    )
    for way in ("all items", "without seen items"):
        out += f"\n**{way}**\n" + header("method", *(f"@{k}" for k in _KS))
        for name, ways in test.items():
            found = ways[way]["multi"]
            cells = (f"{found[f'recall@{k}']:.4f} / {found[f'ndcg@{k}']:.4f}" for k in _KS)
            out += row(name, *cells)
    known, speed = result["reach"]["train"], result["speed"]
    best = (f"@{k} {known['best_possible'][f'recall@{k}']:.4f}" for k in _KS)
    return out + (
        f"\n{known['targets_known']:.1%} of the test targets occur in the train part. Recommending "
        f"just these would have Recall {', '.join(best)}.\n"
        f"\nThe tuned one is fitted to {speed['interactions']:,} interactions in "
        f"{spread(speed['fit_seconds'])} seconds, takes {speed['bytes'] / 1e6:.1f} MB, and "
        f"proposes 40 items in {speed['propose_us_p50']:.0f} us (99th percentile "
        f"{speed['propose_us_p99']:.0f} us), in batches of 32 users in "
        f"{spread(speed['propose_us_per_user_of_32'])} us each.\n"
    )
