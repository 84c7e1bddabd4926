"""The page of gpu.py's result: what was measured so far, in the project's own report of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from draftrec.report.blocks import (
    Block,
    Cell,
    Figure,
    Report,
    Section,
    Table,
    Text,
    facts,
    lines,
    row,
)
from draftrec.report.plots import Labels, Series
from draftrec.report.show import render

Result = dict[str, Any]
_TITLES = {
    "steps": "The plain step against the memory's limit",
    "replay": "Replayed texts",
    "exact": "Is strict plain, bit for bit?",
    "beams": "Beams: drafts of 2K against plain tree beams",
    "rows": "What rows cost",
}


def page(payload: Result) -> str:
    """One HTML string."""
    return render(report(payload))


def report(payload: Result) -> Report:
    """The blocks, section by section; those that failed or were left out are listed."""
    sections = payload["sections"]
    makers = {
        "steps": _steps, "replay": _replay, "exact": _exact, "beams": _beams, "rows": _rows,
    }  # fmt: skip
    shown: list[Section] = []
    for kind, make in makers.items():
        found = _results(sections, kind)
        peers = {p: _results(sections, p) for p in ("vllm", "sglang")} if kind == "replay" else {}
        if found:
            blocks, hint = make(found, peers) if kind == "replay" else make(found)
            shown.append(Section(_TITLES[kind], blocks, hint))
    missing = [told for name, found in sections.items() for told in _missing(name, found)]
    if missing:
        shown.append(Section("Not measured", (Text(tuple(missing)),)))
    title = f"draftrec on {payload['where']['card']}"
    lead = "Llamas with random weights, bfloat16. Medians; in small, the lowest and highest round."
    if payload["dry_run"]:
        lead = f"A dry run of tiny shapes: these figures say nothing. {lead}"
    return Report(title, lead, (*shown, _where(payload)))


def _missing(name: str, found: Any) -> Iterator[str]:
    """What was not measured within `found`, and why."""
    if not isinstance(found, Mapping):
        return
    for why in ("failed", "skipped"):
        if why in found:
            yield f"{name}: {found[why]}"
    for inner, value in found.items():
        yield from _missing(name if inner == "result" else f"{name}, {inner}", value)


def _results(sections: Mapping[str, Any], kind: str) -> dict[str, Result]:
    """By shape."""
    return {
        name.partition(" ")[2]: found["result"]
        for name, found in sections.items()
        if name.partition(" ")[0] == kind and "result" in found
    }


def _steps(found: dict[str, Result]) -> tuple[tuple[Block, ...], str]:
    rows = [
        row(
            f"{shape}, batch {batch.removeprefix('batch_')}, {way}",
            _spread(step["step_ms"]),
            f"{step['weights_and_kv_once_ms']:.2f}",
            Cell(f"{step['step_over_floor']:.2f}", strong=True),
            "-" if step["busy_ms"] is None else f"{step['busy_ms']:.2f}",
            _spread(step["first_sight_ms"]["plain"]),
            _spread(step["first_sight_ms"]["drafted"]),
            _spread(result["hf_generate_step_ms"][batch]),
        )
        for shape, result in found.items()
        for way, batches in result["ways"].items()
        for batch, step in batches.items()
        if "skipped" not in step
    ]
    columns = (
        "", "step, ms", "limit, ms", "step / limit", "kernels run, ms", "new length, ms",
        "new length, drafted", "HF generate, ms",
    )  # fmt: skip
    hint = (
        "The limit is the time to read weights, keys and values once, at the bandwidth of a copy "
        "measured in the same run. A new length: passes that each see one key more than any before."
    )
    return (Table(columns, tuple(rows)),), hint


def _replay(
    found: dict[str, Result], peers: dict[str, dict[str, Result]]
) -> tuple[tuple[Block, ...], str]:
    names = ("hf_generate", "plain", "strict", "relaxed")
    rows: dict[str, list[tuple[Cell, ...]]] = {}
    for shape, ways in found.items():
        for way, sources in ways.items():
            for source in sources.keys() - {"cost_curves"}:
                for batch, cell in sources[source].items():
                    rows.setdefault(f"{source}, {way}", []).append(
                        row(
                            f"{shape}, batch {batch.removeprefix('batch_')}",
                            *(_rate(cell.get(name)) for name in names),
                            *(_peer(peers[p], shape, source, batch) for p in peers),
                        )
                    )
    columns = ("", "HF generate", "plain", "strict", "relaxed", "vLLM", "SGLang")
    hint = (
        "Tokens per second, prompts and drafting included; in small, times as fast as plain, and "
        "tokens per call. A replayed model writes, by decree, a text that was written before: "
        "every pass costs what it costs. Peers decode plainly, as many tokens of the same prompts."
    )
    tables = (Table(columns, tuple(rows[name]), title=name) for name in sorted(rows))
    return tuple(tables), hint


def _rate(found: Result | None) -> Cell:
    if found is None:
        return Cell("-")
    small = ""
    if found.get("over_plain", 1.0) != 1.0:
        small = f"{found['over_plain']:.2f}x, {found['tokens_per_call']:.2f} per call"
    return Cell(f"{found['tokens_per_second']:,.0f}", small)


def _peer(found: dict[str, Result], shape: str, source: str, batch: str) -> Cell:
    result = found.get(shape)
    if result is None or result["source"] != source or batch not in result:
        return Cell("-")
    return _spread(result[batch]["tokens_per_second"], "{:,.0f}")


def _exact(found: dict[str, Result]) -> tuple[tuple[Block, ...], str]:
    rows: list[tuple[Cell, ...]] = []
    for shape, ways in found.items():
        for way, result in ways.items():
            counts = [run["equal"] for run in result["equal"].values()]
            worst = min(result["equal"], key=lambda name: result["equal"][name]["equal"])
            rows.append(
                row(
                    f"{shape}, {way}",
                    Cell(f"{min(counts)} of {result['texts']}", worst),
                    str(sum(n == result["texts"] for n in counts)),
                    str(len(counts)),
                    "bit for bit" if result["promised"] else "up to rounding",
                )
            )
    columns = ("", "fewest equal", "runs with all equal", "runs", "promised")
    hint = (
        "Texts equal to those written alone and without drafts, at several batch sizes and "
        "budgets. Random weights: near-ties between tokens are far more frequent than in trained "
        "models."
    )
    return (Table(columns, tuple(rows)),), hint


def _beams(found: dict[str, Result]) -> tuple[tuple[Block, ...], str]:
    rows = [
        row(
            f"{shape}, {way}, K = {k}, {users} users",
            _spread(cell["plain"]["ms_per_user"]),
            *(
                Cell(f"{cell[name]['over_plain']['median']:.2f}x",
                     f"{cell[name]['target_calls']:.2f} calls")
                for name in result["held"]
            ),
            f"{min(c['same_items'] for c in cell.values())} of {users}",
        )
        for shape, ways in found.items()
        for way, result in ways.items()
        for name, cell in result.items()
        if name.startswith("k_")
        for _, k, _, users in [name.split("_")]
    ]  # fmt: skip
    held = next(iter(next(iter(found.values())).values()))["held"]
    columns = ("", "plain, ms per user", *(f"drafts hold, {n}" for n in held), "same items")
    shares = ", ".join(f"{name}: {share:.0%}" for name, share in held.items())
    hint = (
        f"How often a drafted level holds all beams that plain search keeps, by decree ({shares}); "
        "the draft model's passes take what they take. Times as fast as plain, and target calls."
    )
    return (Table(columns, tuple(rows)),), hint


def _rows(found: dict[str, Result]) -> tuple[tuple[Block, ...], str]:
    figures: list[Figure] = []
    for shape, result in found.items():
        for way, batches in result["ways"].items():
            series = [
                Series(name.replace("_", " "), result["rows"], curve["ms"], tone=i)
                for i, (name, curve) in enumerate(batches.items())
                if "ms" in curve
            ]
            words = "Milliseconds of a pass by its rows, spread over so many sequences:"
            labels = Labels(f"{shape}, {way}", words, "rows", "ms")
            figures.append(lines(labels, "", series, doubling=True))
    return tuple(figures), "Draft nodes are rows: where the line is flat, they are free."


def _where(payload: Result) -> Section:
    texts = payload["sections"].get("texts", {}).get("result", {})
    told = {
        name: f"{t['source']}: {t['texts']} replayed, {t['pool_texts']:,} to draft from"
        for name, t in texts.items()
    }
    here = {k: "unknown" if v is None else str(v) for k, v in payload["where"].items()}
    seconds = {
        name: f"{found['seconds']:.0f} s"
        for name, found in payload["sections"].items()
        if "seconds" in found
    }
    tables = {"Where": {**here, "seed": str(payload["seed"])}, "Texts": told, "Sections": seconds}
    return facts({name: table for name, table in tables.items() if table})


def _spread(found: Result, form: str = "{:.2f}") -> Cell:
    if found.get("median") is None:
        return Cell("-")
    low, median, high = (form.format(found[k]) for k in ("low", "median", "high"))
    return Cell(median, "" if low == high else f"{low} to {high}")
