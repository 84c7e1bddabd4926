"""The texts' story as a report and as `summary.json`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from draftrec.core import SOURCES, ratio
from draftrec.demo.texts import PROBE_BUDGET, Contender, Growth, Story
from draftrec.evaluate.beam_speed import Spread
from draftrec.report import blocks, plots
from draftrec.report.blocks import (
    Card,
    Cards,
    Cell,
    Figure,
    Report,
    Section,
    Table,
    differing,
    figure,
    machine_facts,
    row,
)
from draftrec.report.plots import Bar, Labels, Series, Stack

LABELS = {"baseline": "Baseline", "strict": "Strict", "relaxed": "Relaxed"}
_EXAMPLES, _EXAMPLES_ON_TERMINAL = 3, 2
_SOURCE_NAMES = {
    "prompt": "own prompt and text",
    "previous": "previous text",
    "group": "group pool",
    "all": "pool of all",
    "grammar": "forced by the grammar",
    "head": "learned drafter",
}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of writing the texts and what it cost. `tone` is its colour in plots.

    `speedup` is the baseline's seconds over this arm's, repeat by repeat; None for the baseline.
    `identical` of `texts` texts equal the baseline's. `accepted_per_call[i]` counts verifications
    of a draft that kept `i` draft tokens; `accepted_by_source` follows `core.SOURCES`.
    """

    name: str
    label: str
    texts: int
    identical: int
    new_tokens: int
    tokens_per_call: float
    mean_accepted_tokens: float
    acceptance_rate: float
    relaxed_share: float
    seconds: Spread
    tokens_per_second: float
    draft_share: float
    speedup: Spread | None = None
    accepted_per_call: tuple[int, ...] = ()
    accepted_by_source: tuple[int, ...] = ()
    tone: int = 1


def make_report(story: Story, folder: Path) -> Report:
    """The page about a story whose files lie in `folder`."""
    arms = make_arms(story)
    curve: dict[str, Any] = story.contenders[1].generator.cost_state or {}
    drawn = [
        speedups(arms), calls(arms), accepted(arms), sources(arms),
        pass_cost(curve.get("rows", ()), [1000 * s for s in curve.get("seconds", ())]),
        pool_growth(story.growth),
    ]  # fmt: skip
    return Report(
        "The same texts, written three ways",
        f"{len(story.requests)} readers the model has not seen, one text each, by the same "
        "model on the same machine: plain decoding, strict verification, relaxed verification.",
        (
            Section("", (tiles(arms),), kept=0),
            blocks.findings(findings(story, arms)),
            Section("Side by side", (side_by_side(arms),)),
            blocks.gallery(plot for plot in drawn if plot),
            Section(
                "Texts",
                tuple(make_examples(story)),
                "Marked: words that differ from the baseline's.",
                kept=_EXAMPLES_ON_TERMINAL,
            ),
            blocks.next_steps(next_steps(story, folder)),
            blocks.facts({"Settings": settings(story), "Machine": machine_facts()}),
        ),
    )


def make_arms(story: Story) -> list[Arm]:
    """The contenders as the report shows them."""
    base = story.contenders[0]
    return [_arm(one, base, tone) for tone, one in enumerate(story.contenders)]


def tiles(arms: Seq[Arm]) -> Cards:
    """How much faster each way is than the baseline."""
    return Cards(tuple(_tile(arm, arm.speedup) for arm in arms if arm.speedup))


def _tile(arm: Arm, speedup: Spread) -> Card:
    same = arm.identical == arm.texts
    words = "every text identical" if same else f"{_percent(arm.relaxed_share)} of tokens relaxed"
    note = f"as fast as the baseline, {words}"
    return Card(arm.label, arm.tone, note, f"{speedup.median:.2f}", "x")


_COLUMNS: dict[str, Callable[[Arm], str | Cell]] = {
    "walltime speedup": lambda a: speedup_cell(a.speedup),
    "seconds": lambda a: Cell(f"{a.seconds.median:.2f}", _range(a.seconds)),
    "tokens per second": lambda a: f"{a.tokens_per_second:,.0f}",
    "tokens per call": lambda a: f"{a.tokens_per_call:.2f}",
    "mean accepted tokens": lambda a: _drafted(a, f"{a.mean_accepted_tokens:.2f}"),
    "acceptance rate": lambda a: _drafted(a, _percent(a.acceptance_rate)),
    "relaxed share": lambda a: _drafted(a, _percent(a.relaxed_share)),
    "time drafting": lambda a: _drafted(a, _percent(a.draft_share)),
    "identical texts": lambda a: f"{a.identical} of {a.texts}" if a.speedup else "-",
}


def side_by_side(arms: Seq[Arm]) -> Table:
    """All figures of all ways."""
    rows = (
        row(Cell(arm.label, tone=arm.tone), *(cell(arm) for cell in _COLUMNS.values()))
        for arm in arms
    )
    note = (
        "Medians of the repeats, with the lowest and the highest. Speedup is the baseline's "
        "seconds divided by ours on the same prompts, drafting included. A draft tree proposes "
        "alternatives of which at most one path can be kept, so a low acceptance rate is no "
        "failure."
    )
    return Table(("", *_COLUMNS), tuple(rows), note=note, turned=True)


def speedup_cell(speedup: Spread | None) -> Cell:
    """A speedup with its range; 1 for what it is measured against."""
    if speedup is None:
        return Cell("1")
    return Cell(f"{speedup.median:.2f}x", _range(speedup), strong=True)


def _range(spread: Spread) -> str:
    return f"{spread.low:.2f} to {spread.high:.2f}"


def _drafted(arm: Arm, words: str) -> str:
    """What makes no sense without drafts."""
    return words if arm.acceptance_rate else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def findings(story: Story, arms: Seq[Arm]) -> list[str]:
    """What the numbers mean, in sentences."""
    baseline, strict, relaxed = arms
    first, last = story.growth[0], story.growth[-1]
    return [
        _strict_finding(strict),
        f"Relaxed was {_times(relaxed)} as fast. {_percent(relaxed.relaxed_share)} of its tokens "
        "were not the model's own first choice but close to it, and the words after them follow "
        f"suit: {relaxed.identical} of {relaxed.texts} texts came out like the baseline's.",
        f"Each forward pass wrote {strict.tokens_per_call:.1f} tokens in strict and "
        f"{relaxed.tokens_per_call:.1f} in relaxed mode instead of "
        f"{baseline.tokens_per_call:.1f}: texts about similar readers share phrases, so texts "
        "written before foretell the next tokens and the model only has to check them.",
        "Drafts get better as the pool grows: from a reader's own prompt and text alone strict "
        f"wrote {first.tokens_per_call['strict']:.1f} tokens per call, with {last.texts} texts in "
        f"the pool {last.tokens_per_call['strict']:.1f} ({PROBE_BUDGET} draft tokens per call).",
        "This model is tiny and its texts are more alike than those of a large model. Here much of "
        "the time goes into the work around each pass; with a large model the pass itself "
        "dominates, so the speedup comes closer to the tokens per call. Measure your own.",
    ]


def _strict_finding(strict: Arm) -> str:
    if strict.identical == strict.texts:
        return (
            f"Strict wrote all {strict.texts} texts exactly as the baseline did, token for token, "
            f"and was {_times(strict)} as fast."
        )
    return (
        f"Strict was {_times(strict)} as fast, but only {strict.identical} of {strict.texts} texts "
        "equal the baseline's; please report this."
    )


def _times(arm: Arm) -> str:
    assert arm.speedup
    return f"{arm.speedup.median:.2f} times"


def speedups(arms: Seq[Arm]) -> Figure | None:
    """Walltime speedup of each way."""
    data = [speedup_bar(a.label, a.speedup, a.tone) for a in arms if a.speedup]
    if not data:
        return None
    labels = Labels("Walltime speedup", "Median speedup over the baseline:", "times")
    caption = "Baseline seconds divided by ours, drafting included. Dashed: the baseline."
    if any(bar.low != bar.high for bar in data):
        caption += " Whiskers: lowest and highest repeat."
    return blocks.bars(labels, caption, data, reference=1.0)


def speedup_bar(label: str, speedup: Spread, tone: int) -> Bar:
    """A speedup with its range as a bar."""
    note = f"{speedup.median:.2f}x"
    return Bar(label, speedup.median, speedup.low, speedup.high, tone, note)


def calls(arms: Seq[Arm]) -> Figure:
    """Tokens per call of each way."""
    data = [
        Bar(a.label, a.tokens_per_call, tone=a.tone, note=f"{a.tokens_per_call:.2f}") for a in arms
    ]
    labels = Labels("Tokens per call", "New tokens per forward pass:", "tokens")
    return blocks.bars(labels, "New tokens per forward pass of the target.", data)


def accepted(arms: Seq[Arm]) -> Figure | None:
    """How many draft tokens a verification keeps."""
    arms = [a for a in arms if sum(a.accepted_per_call)]
    if not arms:
        return None
    data = [
        Series(a.label, range(len(a.accepted_per_call)), a.accepted_per_call, a.tone) for a in arms
    ]
    means = ", ".join(f"{a.label} {a.mean_accepted_tokens:.2f} on average" for a in arms)
    labels = Labels(
        "Accepted tokens per call",
        f"How many draft tokens a verification keeps: {means}.",
        "draft tokens kept",
        "share of verifications, %",
    )
    caption = "How many draft tokens one verification keeps, the bonus token not counted."
    return figure(labels, caption, plots.histogram(data, labels))


def sources(arms: Seq[Arm]) -> Figure | None:
    """Where accepted tokens came from."""
    arms = [a for a in arms if sum(a.accepted_by_source)]
    if not arms:
        return None
    names = [_SOURCE_NAMES[source] for source in SOURCES]
    data = [Stack(a.label, list(zip(names, a.accepted_by_source, strict=True))) for a in arms]
    parts = {s.label: ", ".join(f"{n} {v:g}" for n, v in s.parts if v) for s in data}
    words = "; ".join(f"{label}: {counts}" for label, counts in parts.items())
    labels = Labels("Acceptance by source", f"Accepted draft tokens by source. {words}.")
    return figure(labels, "Where accepted draft tokens came from.", plots.shares(data, labels))


def pass_cost(rows: Seq[float], milliseconds: Seq[float]) -> Figure | None:
    """What a pass takes by its rows, once that was measured."""
    if len(rows) < 2:
        return None
    labels = Labels(
        "Cost of a forward pass",
        f"From {milliseconds[0]:.2f} ms for {rows[0]:g} rows to {milliseconds[-1]:.2f} for "
        f"{rows[-1]:g}.",
        "rows in one forward pass",
        "milliseconds",
    )
    caption = "Measured at start-up. Where the curve is flat, checking a draft is nearly free."
    series = [Series("pass", rows, milliseconds)]
    return figure(labels, caption, plots.lines(series, labels, doubling=True))


def pool_growth(growth: Seq[Growth]) -> Figure | None:
    """Tokens per call as the pool grows."""
    if len(growth) < 2:
        return None
    sizes = [float(point.texts) for point in growth]
    series = [
        Series(LABELS[name], sizes, [p.tokens_per_call[name] for p in growth], tone)
        for name, tone in (("strict", 1), ("relaxed", 2))
    ]
    labels = Labels(
        "Tokens per call against pool size",
        f"From {sizes[0]:g} to {sizes[-1]:g} texts.",
        "texts in the pool",
        "tokens per call",
    )
    caption = (
        "The more texts were written before, the better. Counted with "
        f"{PROBE_BUDGET} draft tokens per call."
    )
    return blocks.lines(labels, caption, series)


def next_steps(story: Story, folder: Path) -> list[tuple[str, str]]:
    """Commands to go on with, and what they are for. The first runs as it stands."""
    readers, pool = shlex.quote(str(folder / "readers.jsonl")), shlex.quote(str(folder / "pool"))
    run, model = shlex.quote(str(folder / "run")), shlex.quote(str(story.plan.model))
    return [
        (
            f"draftrec generate {readers} --model {model} --pool {pool} --output {run}",
            "Write these readers' texts again, as a job that can be resumed:",
        ),
        (
            "draftrec generate users.jsonl --model path/or/hub-id --template kar --side user "
            "--output run",
            "Write knowledge about your own users with your own model:",
        ),
        (
            "draftrec generate users.jsonl --model path/or/hub-id --template kar --side user "
            "--accept relaxed --output run-relaxed",
            "The same in relaxed mode, to compare speed and texts:",
        ),
    ]


def make_examples(story: Story) -> list[Cards]:
    """A few texts by all contenders, the relaxed one among them changed if any is."""
    base, *others = story.contenders
    relaxed = others[-1]
    changed = [
        i
        for i, (a, b) in enumerate(zip(base.texts, relaxed.texts, strict=True))
        if a.token_ids.tolist() != b.token_ids.tolist()
    ]
    same = [i for i in range(len(base.texts)) if i not in changed]
    chosen = sorted([*changed, *same][:_EXAMPLES])
    return [
        Cards(
            tuple(_version(one, base, i, tone) for tone, one in enumerate(story.contenders)),
            f"Reader {story.requests[i].entity_id}",
            story.prompts[i],
        )
        for i in chosen
    ]


def settings(story: Story) -> dict[str, str]:
    """How the texts were written."""
    strict, plan = story.contenders[1].generator, story.plan
    config = strict.config
    rule = story.contenders[2].generator.config.accept
    return {
        "model": f"embedded, {_parameters(strict):.1f} million parameters",
        "device and dtype": f"{strict.device}, {strict.dtype}, one thread",
        "decoding": "greedy, one text at a time",
        "held-out prompts": f"{plan.held_out}, template {plan.template}, users",
        "pool": f"{len(story.pool)} texts, {story.pool.tokens:,} tokens, "
        f"{len(story.pool.groups)} groups",
        "budget and depth": f"{config.draft.budget} nodes, {config.draft.depth} tokens",
        "relaxed": f"among the top {rule.top_k}, at least {rule.min_prob:g} likely",
        "longest text": f"{plan.max_new_tokens} tokens",
        "repeats": f"{len(story.contenders[0].repeats)}, interleaved",
        "seed": str(plan.seed),
    }


def to_json(story: Story) -> dict[str, Any]:
    """The content of `summary.json`."""
    arms = make_arms(story)
    strict = story.contenders[1].generator
    return {
        "seed": story.plan.seed,
        "model": "demo-lm",
        "device": strict.device,
        "dtype": strict.dtype,
        "threads": 1,
        "batch_size": 1,
        "repeats": len(story.contenders[0].repeats),
        "texts": len(story.requests),
        "wall_seconds": story.seconds,
        "warm_seconds": story.warm_seconds,
        "pool": {
            "texts": len(story.pool),
            "tokens": story.pool.tokens,
            "groups": len(story.pool.groups),
        },
        "arms": {
            one.name: _arm_json(arm, one) for arm, one in zip(arms, story.contenders, strict=True)
        },
        "pool_growth": [asdict(point) for point in story.growth],
        "cost_curve": strict.cost_state,
        "written": [
            {
                "entity_id": story.requests[i].entity_id,
                **{c.name: c.generator.decode(c.texts[i].token_ids) for c in story.contenders},
            }
            for i in range(len(story.requests))
        ],
        "findings": findings(story, arms),
        "machine": machine_facts(),
    }


def _arm(one: Contender, base: Contender, tone: int) -> Arm:
    counts, new = one.counts, one.new_tokens
    rates, timing = counts.rates(new), one.generator.timing
    return Arm(
        name=one.name,
        label=LABELS[one.name],
        texts=len(base.texts),
        identical=one.identical_to(base),
        new_tokens=new,
        **rates,
        seconds=Spread.of(one.seconds),
        tokens_per_second=ratio(new, sum(one.seconds)),
        draft_share=ratio(timing.draft_seconds, sum(one.seconds)) if one is not base else 0.0,
        speedup=one.speedup_over(base) if one is not base else None,
        accepted_per_call=_histogram(one),
        accepted_by_source=tuple(counts.accepted_by_source),
        tone=tone,
    )


def _arm_json(arm: Arm, one: Contender) -> dict[str, Any]:
    timing = one.generator.timing
    values = asdict(arm)
    for name in ("label", "tone", "seconds", "speedup", "accepted_by_source"):
        del values[name]
    return values | {
        **{
            name: getattr(one.counts, name)
            for name in ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")
        },
        "accepted_by_source": dict(zip(SOURCES, arm.accepted_by_source, strict=True)),
        "wall_seconds": one.seconds,
        "walltime_speedup": asdict(arm.speedup) if arm.speedup else None,
        "draft_seconds": timing.draft_seconds,
        "verify_seconds": timing.verify_seconds,
        "prefill_seconds": timing.prefill_seconds,
    }


def _version(one: Contender, base: Contender, i: int, tone: int) -> Card:
    text, model = one.texts[i], base.texts[i]
    own, theirs = text.token_ids.tolist(), model.token_ids.tolist()
    calls, tokens = text.counts.target_calls, len(own)
    note = f"{tokens} tokens in {calls} calls"
    if one is not base:
        note += ", identical" if own == theirs else f", {text.counts.relaxed_tokens} relaxed"
    pieces = differing(theirs, own, _decoder(one))
    if pieces:  # many texts begin with a space, which would only look like a slip
        pieces = (replace(pieces[0], text=pieces[0].text.lstrip()), *pieces[1:])
    return Card(LABELS[one.name], tone, note, text=pieces)


def _decoder(one: Contender) -> Callable[[Seq[int]], str]:
    tokenizer = one.generator.tokenizer
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def _histogram(one: Contender) -> tuple[int, ...]:
    counts = one.accepted_per_call
    return tuple(counts[i] for i in range(max(counts, default=-1) + 1))


def _parameters(generator: Any) -> float:
    return sum(p.numel() for p in generator.target.model.parameters()) / 1e6
