"""The table of texts written inside transformers in docs/tables.md."""

from __future__ import annotations

from typing import Any

from markdown import header, row


def transformers(result: dict[str, Any]) -> str:
    """Identical texts by architecture and batch, then those of the real prompts."""
    out = (
        "## Inside transformers' generate: `benchmarks/transformers_generate.py`\n\n"
        "Token ids with `custom_generate=draftrec.integrations.transformers.generate` against "
        "plain `generate(do_sample=False)` at the same batch, float32. Tiny random models; their "
        "pool holds the plain texts with every seventh token changed, so drafts are accepted and "
        "refused.\n"
    )
    rows = {name: (found, "own, changed") for name, found in result["architectures"].items()}
    if real := result.get("real"):
        rows["the small real model, real prompts"] = real["batch"], f"{real['pool_texts']} others'"
    sizes = list(next(iter(rows.values()))[0])
    columns = [f"{what}, batch {b}" for b in sizes for what in ("identical", "tokens per call")]
    out += header("model", "pool of texts", *columns)
    for name, (found, pool) in rows.items():
        cells: list[str] = []
        for r in found.values():
            cells += [f"{r['identical']} of {r['prompts']}", f"{r['tokens_per_call']:.2f}"]
        out += row(name, pool, *cells)
    return out
