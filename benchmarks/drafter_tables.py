"""Tables of drafter.py and live.py: heads beside pools, what they would cost a large model, and
everything a model writes with in one run."""

from __future__ import annotations

from typing import Any

from markdown import header, row, spread

Result = dict[str, Any]


def _cells(result: Result) -> str:
    """What tells one of these results from the others."""
    asked = result["settings"]
    cells = f"batch {' and '.join(map(str, asked['batch']))}"
    cells += f", budget {' and '.join(map(str, asked['budgets']))}"
    heat = asked.get("written_at")
    return f"{cells}, learnt from sampled texts" if heat else cells


def drafter(result: Result) -> str:
    """Tokens per call and time of every way, and how the heads were trained."""
    asked = result["settings"]
    greedy = "a repetition penalty of " + str(asked["penalty"])
    out = (
        f"## A trained head beside a pool, {result['model']}, {asked['side']} texts, "
        f"{_cells(result)}: `benchmarks/drafter.py`\n\n"
        f"{asked['reported']} held-out texts of at most {asked['max_new_tokens']} tokens, KAR "
        f"prompts, {greedy}, {asked['threads']} thread(s). `pool-N`: a pool of the first N texts "
        "that the model wrote for other entities; `both-N`: and a head trained on the same; "
        "`head-N`: the head, and the text's own words. "
    )
    if heat := asked.get("written_at"):
        out += f"These texts were sampled at temperature {heat}, as those of a sampling job are. "
    ways = [w for cell in result["cells"].values() for ways in cell.values() for w in ways.values()]
    timed = any("seconds" in way for way in ways)
    out += "Times are of the same prompts in turn.\n" if timed else "Not timed.\n"
    out += header(
        "texts", "budget", "way", "tokens per call", "over the pool", "speed over plain",
        "speed over the pool", "plain\'s texts",
    )  # fmt: skip
    for cell, budgets in result["cells"].items():
        for budget, ways in budgets.items():
            for way, found in ways.items():
                over = found.get("over_pool", {})
                ratio = over.get("tokens_per_call")
                out += row(
                    cell, budget.removeprefix("budget "), way, f"{found['tokens_per_call']:.2f}",
                    f"{ratio:.2f}" if ratio else "", spread(found.get("speedup_over_plain")),
                    spread(over.get("speed")), f"{found['identical_to_plain']} of {found['texts']}",
                )  # fmt: skip
    out += "\n" + header("head", "draft tokens", "epochs", "minutes", "tokens per call, no pool")
    for texts, info in result["trained"].items():
        alone = info.get("valid_tokens_per_call")
        minutes, alone = f"{info['seconds'] / 60:.0f}", f"{alone:.2f}" if alone else "-"
        out += row(f"{texts} texts", info["vocabulary"], info["epochs"], minutes, alone)
    return out


def drafter_plan(result: Result) -> str:
    """What levels of a head cost large targets, by shapes alone."""
    out = (
        "## Heads of large models, a plan: `benchmarks/drafter.py plan`\n\n"
        "Counted from published shapes, not measured: bytes that a step of the target and a level "
        f"of its head read in bfloat16, over {result['vocabulary']:,} draft tokens, and what share "
        f"of a plain step {result['levels']} levels take where memory is the limit.\n"
    )
    out += header("target", "GB per step", "GB per level", "share")
    for name, found in result["models"].items():
        target, level = (found[f"{of}_bytes"] / 1e9 for of in ("target", "level"))
        out += row(name, f"{target:.2f}", f"{level:.2f}", f"{found['share']:.1%}")
    return out


def small_drafter(result: Result) -> str:
    """A head and a small model of its own, trained alike."""
    asked = result["settings"]
    out = (
        "## A small language model in a head's place: `benchmarks/small_drafter.py`\n\n"
        f"Both learnt from the same texts of {result['model']} with the same loss, over "
        f"{asked['draft_tokens']:,} draft tokens, and are judged on the same "
        f"{asked['held_out']} held-out texts: tokens per call of the target where the most "
        f"probable token is drafted at {asked['levels']} levels, without a pool.\n"
    )
    out += header("drafter", "weights", "texts", "epochs", "minutes of training", "tokens per call")
    for name, form in (("head", "a head"), ("small", "a small model")):
        found = result[name]
        out += row(
            form, f"{found['weights']:,}", f"{found['texts']:,}", found["epochs"],
            f"{found['seconds'] / 60:.0f}", f"{found['valid_tokens_per_call']:.2f}",
        )  # fmt: skip
    return out


def recycling(result: Result) -> str:
    """What the target's second thoughts add to a pool."""
    asked = result["settings"]
    out = (
        "## The target's own second thoughts: `benchmarks/recycling.py`\n\n"
        f"{asked['texts']} texts of {result['model']} replayed, tokens per call; a pool of "
        f"{asked['pool']} earlier texts, a memory of the target's latest eight likeliest tokens "
        f"after each token (of {asked['remembered']} of those, and of the texts as they go on), "
        "and the union of both trees beside a pool with as many nodes. Nothing is timed.\n"
    )
    out += header("way", "tokens per call")
    for ways in result["tokens_per_call"].values():
        for way, found in ways.items():
            out += row(way, f"{found:.2f}")
    return out


def live(result: Result) -> str:
    """A real instruct model's own texts, every way to write them."""
    asked = result["settings"]
    wide = f", {asked['dtype']}" if asked["dtype"] != "bfloat16" else ""
    out = (
        f"## A real instruct model, live, {result['model']}, {asked['side']} texts{wide}: "
        "`benchmarks/live.py`\n\n"
        f"{asked['dtype']}, KAR prompts of held-out MovieLens {asked['side']}s, a repetition "
        f"penalty of {asked['penalty']}, texts of at most {asked['max_new_tokens']} tokens, "
        f"{asked['threads']} thread(s). `first`: a first job, whose pool receives its own texts; "
        f"`pool`: {asked['texts']:,} texts that the model wrote about others; `head`: a draft head "
        "beside that pool; `relaxed`: the pool, some words changed. All ways write the same "
        "prompts in turn; transformers pads its batches, which also changes what its repetition "
        "penalty sees.\n"
    )
    for name, peer in result.get("peers", {}).items():
        if "skipped" in peer:
            out += f"\n{name} was skipped: {peer['skipped']}.\n"
        else:
            out += (
                f"\n{name}: {peer['version']}, weights {peer['weights']}, cache {peer['cache']}"
                f"{', it multiplies in ' + peer['computes'] if 'computes' in peer else ''}; a text "
                "that ends makes room for the next at once.\n"
            )
    return out + live_table(result["live"])


def live_table(cells: Result) -> str:
    """The rows of every setting: speeds, tokens per call, and whose texts are plain ones."""
    out = header(
        "setting", "engine", "tokens/s", "over best plain way", "over HF generate",
        "tokens per call", "same text as plain",
    )  # fmt: skip
    for setting, ways in cells.items():
        if not isinstance(ways, dict):
            continue
        for name, r in ways.items():
            if name == "best_plain_way":
                continue
            out += row(
                setting.replace("_", " "), name, f"{r['tokens_per_second']['median']:.0f}",
                spread(r["speedup_over_best_plain"]), spread(r["speedup_over_hf_generate"]),
                r["tokens_per_call"] or "-", f"{r['identical_to_plain']} of {r['texts']}",
            )  # fmt: skip
    return out
