"""The tables of first jobs, sampled texts, controls and structured output in docs/tables.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row, spread

Result = dict[str, Any]


def bookshop(result: Result) -> str:
    """The README's command beside itself without drafts."""
    r = result["bookshop"]
    return (
        f"## A first job: `benchmarks/first_job.py --part bookshop`{_penalty(result)}\n\n"
        f"The README's command on {r['records']} invented readers with the embedded model, all "
        "settings at their defaults, in turn with `--draft none`. The speedup is that of the jobs' "
        "own clocks; that of whole processes counts starting Python and loading as well.\n"
        + header(
            "tokens per call",
            "from the pool",
            "speedup",
            "whole processes",
            "the job said",
            "texts equal",
        )
        + row(
            f"{r['drafted']['tokens_per_call']:.2f}",
            f"{r['drafted']['pool_share']:.0%}",
            spread(r["wall_speedup"]),
            spread(r["process_speedup"]),
            spread(r["times_plain_said"]),
            "yes" if r["identical_texts"] else "NO",
        )
    )


def movielens(result: Result) -> str:
    """A real model on real users: pool growing, plain in between."""
    r = result["movielens"]
    where = ", by matrix tiles" if result["benchmark"].endswith("-tiles") else ""
    shares = ", ".join(f"{n} {s:.0%}" for n, s in r["share_of_tokens"].items() if s >= 0.005)
    return (
        f"## A first job on MovieLens-100K{where}: `benchmarks/first_job.py --part movielens`"
        f"{_penalty(result)}\n\n"
        f"{result['settings']['model']} in {r['dtype']} writes profiles of {r['users']} users, "
        "records and prompts by the product's own commands, all settings at their defaults; the "
        f"pool starts empty. {r['compared_texts']} of the texts were also written without drafts, "
        f"chunks in turn. Tokens by source: {shares}. Cut at the limit: {r['cut_texts']}.\n"
        + header("tokens per call", "from the pool", "speedup", "the job would say", "texts equal")
        + row(
            f"{r['tokens_per_call']:.2f}",
            f"{r['pool_share']:.0%}",
            spread(r["speedup"]),
            f"{r['times_plain_said']:.2f}",
            f"{r['identical_texts']} of {r['compared_texts']}",
        )
    )


def _penalty(result: Result) -> str:
    part = result.get("bookshop") or result["movielens"]
    penalty = part["generation_settings"]["repetition_penalty"]
    return "" if penalty == 1.0 else f" with `--repetition-penalty {penalty}`"


def controls_exactness(result: Result) -> str:
    """Texts that differ from transformers', by setting, over all architectures."""
    architectures = result["architectures"]
    out = (
        "## Controls are transformers': `benchmarks/controls.py --part exactness`\n\n"
        f"Tiny models ({', '.join(architectures)}) in float32, batch "
        f"{' and '.join(map(str, result['batch']))}, drafts that are right with a chance of "
        f"{' and '.join(map(str, result['chance_that_a_draft_is_right']))}, "
        f"{result['new_tokens']} tokens, against `model.generate(do_sample=False)` with the same "
        f"settings: {result['different']} of {result['texts']:,} texts differ.\n"
    )
    out += header("setting", "texts", "different", "accepted draft tokens")
    for name in next(iter(architectures.values())):
        cells = [by_setting[name] for by_setting in architectures.values()]
        texts, different, accepted = (
            sum(c[key] for c in cells) for key in ("texts", "different", "accepted_draft_tokens")
        )
        out += row(name.replace("_", " "), texts, different, f"{accepted:,}")
    return out


def controls_costs(result: Result) -> str:
    """What each control costs per pass."""
    out = (
        "## What controls cost: `benchmarks/controls.py --part costs`\n\n"
        f"{result['model']}, vocabulary {result['vocabulary']:,}, {result['slots']} texts at once, "
        f"{result['new_tokens']} tokens each, {result['rounds']} rounds in turn: milliseconds per "
        "pass, how many times a pass without controls that is, and the milliseconds inside the "
        "controls.\n"
    )
    budgets = list(result["per_pass"])
    names = (f"{what}, {b}" for b in budgets for what in ("ms", "times off", "own ms"))
    out += header("setting", *names)
    for setting in result["per_pass"][budgets[0]]:
        cells = (result["per_pass"][b][setting] for b in budgets)
        out += row(
            setting.replace("_", " "),
            *(
                part
                for c in cells
                for part in (
                    f"{c['ms_per_pass']['median']:.2f}",
                    spread(c["times_off_per_pass"]),
                    f"{c['of_it_controls_ms']:.2f}",
                )
            ),
        )
    return out


def structured(result: Result) -> str:
    """Valid texts under RLMRec's schema, and what masks cost."""
    out = (
        "## Texts under a schema: `benchmarks/structured.py`\n\n"
        f"{result['model']} in {result['dtype']}, RLMRec's prompts of invented readers and books "
        f"under the schema that comes with them, at most {result['settings']['max_new_tokens']} "
        f"tokens: {result['valid_of_ended']} of the {result['ended']} texts that ended are valid "
        f"by `jsonschema` (of {result['texts']}; the others were cut at the limit).\n"
    )
    out += header(
        "side", "texts", "ended", "valid", "valid without the schema", "tokens per call", "forced",
        "masks, ms per step", "of verification", "equal to plain",
    )  # fmt: skip
    for side, r in result["sides"].items():
        sample = r["sample"]
        free = sample["without_the_schema"]
        out += row(
            side, r["texts"], r["ended"], r["valid_of_ended"],
            f"{free['valid_of_ended']} of {free['texts']}", f"{r['tokens_per_call']:.2f}",
            f"{r['share_by_source']['grammar']:.0%}", spread(r["masks"]["ms_per_step"]),
            f"{r['masks']['share_of_verification']:.0%}",
            f"{sample['equal_to_plain']} of {sample['texts']}",
        )  # fmt: skip
    steps = "; ".join(
        f"at batch {batch} {spread(s['ms_off'])} ms without masks, {spread(s['ms_on'])} with them"
        for batch, s in result["step"].items()
    )
    return out + f"\nA plain step: {steps}.\n"


def exactness_bits(result: Result) -> str:
    """What --exact promises, kept or not."""
    way = result["settings"].get("pass_", "")
    out = (
        f"## Bit for bit{way and ', ' + way}: `benchmarks/exactness.py --part bits`\n\n"
        f"With `--exact`: {result['prompts']} prompts, at most {result['max_new_tokens']} tokens "
        "each, every text compared with the one that the "
        "same model writes alone and without drafts; in brackets the fewest equal ones of any run "
        "without `--exact`. Promised unasked: without `--exact` too. Nothing is timed.\n"
    )
    out += header("model", "dtype", "runs", "equal texts, fewest", "promised", "promised unasked")
    for model, dtype, r in _of_dtypes(result):
        runs, others = ([x["equal"] for x in r[kind].values()] for kind in ("exact", "ordinary"))
        fewest = f"{min(runs)} of {result['prompts']} ({min(others)})"
        promised = ["yes" if r[kind] else "no" for kind in ("promised", "unasked")]
        out += row(model, dtype, len(runs), fewest, *promised)
    return out


def exactness_bits_cost(result: Result) -> str:
    """What --exact costs."""
    out = (
        "## What bit for bit costs: `benchmarks/exactness.py --part bits-cost`\n\n"
        "How many times as long texts take with `--exact`, plain and strict, at the smallest and "
        "the largest batch; the same prompts in turn.\n"
    )
    found = _of_dtypes(result)
    batches = list(found[0][2])
    ways = [f"{way}, {batch.replace('_', ' ')}" for batch in batches for way in ("plain", "strict")]
    out += header("model", "dtype", *ways)
    for model, dtype, r in found:
        costs = [spread(x) for b in batches for x in r[b]["exact_over_ordinary"].values()]
        out += row(model, dtype, *costs)
    return out


def _of_dtypes(result: Result) -> list[tuple[str, str, Result]]:
    """What was found of each model in each dtype."""
    models = result["models"].items()
    return [(model, dtype, r) for model, dtypes in models for dtype, r in dtypes.items()]


def sampled(result: Result) -> str:
    """Drafts of sampled texts, with and without what their tokens are drawn by."""
    asked, lives = result["settings"], []
    out = (
        "## Sampled texts: `benchmarks/sampled.py`\n\n"
        f"Tokens per call of {asked['texts']} texts that {result['model']} samples, strict, "
        f"drafted from a pool of {asked['warm']} that it sampled for other entities: by the pool's "
        "probabilities alone (blind), and knowing the numbers that tokens are drawn by (told). "
        "Counted on recorded texts; nothing is timed.\n"
    )
    out += header("temperature", "nodes", "texts", "blind", "told", "ratio")
    for temperature, r in result["temperatures"].items():
        for nodes, ways in r["nodes"].items():
            for name, blind in ways["blind"].items():
                ratio = f"{ways['ratio'][name]:.3f}"
                told = f"{ways['told'][name]:.2f}"
                out += row(temperature, nodes, name, f"{blind:.2f}", told, ratio)
        live = r["live"]
        lives.append(
            f"temperature {temperature}, {live['nodes']} nodes: {live['tokens_per_call']:.2f} "
            f"tokens per call, {live['identical_to_plain']} of {live['texts']} texts those of "
            "plain decoding"
        )
    return out + "\nLive: " + "; ".join(lives) + ".\n"
