"""The items' story as a report and as `summary.json`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path
from typing import Any

from draftrec.demo.items import PLAIN, Story, shown
from draftrec.demo.items_findings import LABELS, STRICT, TONES, Arm, findings, make_arms
from draftrec.demo.texts_report import speedup_bar, speedup_cell
from draftrec.evaluate.beam_speed import Spread
from draftrec.report import blocks, plots
from draftrec.report.blocks import (
    Card,
    Cards,
    Cell,
    Figure,
    Piece,
    Report,
    Section,
    Table,
    figure,
    machine_facts,
    row,
)
from draftrec.report.plots import Bar, Labels, Series, Stack

#: Recommenders whose quality is shown, with their tones; the grey ones have no model.
_QUALITY = {"target": ("Target", 1), "item-item": ("Item-item", 0), "popularity": ("Popularity", 0)}
_READERS, _READERS_ON_TERMINAL, _BEFORE, _LISTED = 4, 2, 5, 6


def make_report(story: Story, folder: Path) -> Report:
    """The page about a story whose files lie in `folder`."""
    arms = make_arms(story)
    ways = list(arms.values())
    drawn = (_speedups(ways), _calls(ways), _crowds(story), _costs(story), _quality(story))
    return Report(
        "The same books, recommended six ways",
        f"{len(story.asked)} readers of an invented bookshop, {story.plan.k} books each out of "
        f"{len(story.shipped.titles):,}: a small language model writes the semantic ids of "
        "the books that come next, by plain beam search and by drafted beams.",
        (
            Section("", (_tiles(arms),), kept=0),
            blocks.findings(findings(story, arms)),
            Section("Side by side", (_side_by_side(story, ways),)),
            blocks.gallery(drawn),
            Section(
                "Readers",
                tuple(_reader(story, place) for place in shown(story, _READERS)),
                "Evenly spread over the test users, not chosen. Marked: the book that the reader "
                "did read next.",
                kept=_READERS_ON_TERMINAL,
            ),
            blocks.next_steps(next_steps(story, folder)),
            blocks.facts({"Settings": settings(story), "Machine": machine_facts()}),
        ),
    )


def _tiles(arms: dict[str, Arm]) -> Cards:
    """How much faster each strict way is than plain search."""
    ways = (arms[name] for name in STRICT)
    return Cards(tuple(_tile(arm, arm.speedup) for arm in ways if arm.speedup))


def _tile(arm: Arm, speedup: Spread) -> Card:
    same = arm.identical == arm.users
    lists = "every list identical" if same else f"{arm.identical} of {arm.users} lists identical"
    note = (
        "as fast as plain search for one user at a time, "
        f"{arm.figures.target_calls:.2f} target calls, {lists}"
    )
    return Card(arm.label, arm.tone, note, f"{speedup.median:.2f}", "x")


def _columns(k: int) -> dict[str, Callable[[Arm], str | Cell]]:
    return {
        "who drafts": lambda arm: arm.drafts,
        "walltime speedup": lambda arm: speedup_cell(arm.speedup),
        "ms per user": lambda arm: f"{arm.timed.ms_per_user:.1f}",
        "target calls": lambda arm: f"{arm.figures.target_calls:.2f}",
        f"AS@{k}": lambda arm: f"{arm.figures.accepted_steps_per_call:.2f}",
        "same lists": _same_cell,
        f"Recall@{k}": lambda arm: f"{arm.recall:.3f}",
        f"NDCG@{k}": lambda arm: f"{arm.ndcg:.3f}",
    }


def _same_cell(arm: Arm) -> Cell:
    if arm.identical is None:
        return Cell("-")
    return Cell(f"{arm.identical}/{arm.users}", f"as {arm.same_as}")


def _side_by_side(story: Story, arms: Seq[Arm]) -> Table:
    """All figures of all ways, and what needs no model."""
    k, alone = story.plan.k, story.timed[PLAIN]
    columns = _columns(k)
    rows = [
        row(Cell(arm.label, tone=arm.tone), *(cell(arm) for cell in columns.values()))
        for arm in arms
    ]
    for name, (label, tone) in _QUALITY.items():
        if tone == 0:
            found = story.quality[name]
            scores = (f"{found.recall[k]:.3f}", f"{found.ndcg[k]:.3f}")
            rows.append(row(Cell(label, tone=tone), "no model", *["-"] * 5, *scores))
    note = (
        f"Times: {len(alone.users)} users one at a time, medians of {len(alone.seconds)} rounds "
        "taken in turn; speedup is plain search's seconds divided by ours, drafting included. "
        f"All else: {arms[0].users} users. AS@{k}: beam levels that a target call decides beyond "
        "its first."
    )
    small = " Small: the lowest and the highest round."
    kept = tuple(name for name in columns if name != "who drafts")
    return Table(("", *columns), tuple(rows), note=note, page_note=small, kept=kept)


def _reader(story: Story, place: int) -> Cards:
    """What a user read, oldest first, what came next, and what was recommended."""
    asked, titles = story.asked[place], story.shipped.titles
    hit = set(asked.targets.tolist())

    def listed(name: str) -> tuple[Piece, ...]:
        items = story.answers[name][place].items[:_LISTED].tolist()
        return tuple(Piece(titles[item], item in hit) for item in items)

    before = tuple(Piece(titles[item]) for item in asked.items[-_BEFORE:].tolist())
    plain = f"Recommended, first {_LISTED} (plain and strict)"
    cards = (
        Card("Read last", 0, f"Next: {_following(story, place)}", items=before),
        Card(plain, TONES["draft"], items=listed(PLAIN)),
        Card(f"Sampled, first {_LISTED}", TONES["sample"], items=listed("sample")),
    )
    return Cards(cards, f"Reader {asked.user}", kept=2)


def _following(story: Story, place: int) -> str:
    """The books that the reader took next."""
    return ", ".join(story.shipped.titles[item] for item in story.asked[place].targets.tolist())


def _speedups(arms: Seq[Arm]) -> Figure:
    data = [speedup_bar(arm.label, arm.speedup, arm.tone) for arm in arms if arm.speedup]
    labels = Labels("Walltime speedup", "Median speedup over plain search:", "times")
    caption = (
        "One user at a time: plain search's seconds divided by ours, drafting included. Dashed: "
        "plain search. Whiskers: lowest and highest round."
    )
    return blocks.bars(labels, caption, data, reference=1.0)


def _calls(arms: Seq[Arm]) -> Figure:
    most = max(len(arm.calls) for arm in arms)
    names = ["1 call", *(f"{i} calls" for i in range(2, most + 1))]
    data = [
        Stack(arm.label, list(zip(names, [*arm.calls, *[0] * most], strict=False))) for arm in arms
    ]
    means = ", ".join(f"{arm.label} {arm.figures.target_calls:.2f}" for arm in arms)
    labels = Labels("Target calls per user", f"Means: {means}.", "share of users")
    caption = "How many forward passes of the target a user takes. Plain search takes one a level."
    return figure(labels, caption, plots.shares(data, labels, first_tone=1))


def _crowds(story: Story) -> Figure:
    sizes = [float(crowd.users) for crowd in story.crowds]
    series = [
        Series(LABELS[n], sizes, [c.speedup[n].median for c in story.crowds], TONES[n])
        for n in STRICT
    ]
    labels = Labels("Speedup against users at once", "", "users at once", "times as fast as plain")
    caption = (
        "Drafts add rows to a pass. With one user they are nearly free; with many, a CPU is busy "
        "anyway, and below 1 drafting costs more than it saves."
    )
    return blocks.lines(labels, caption, series, doubling=True)


def _costs(story: Story) -> Figure:
    series = [
        Series(
            f"{name}, {story.shipped.parameters(name) / 1e6:.2f} M",
            [float(rows) for rows in curve.rows],
            [1000 * s for s in curve.seconds],
            {"target": 0, "draft": 1}[name],
        )
        for name, curve in story.costs.items()
    ]
    labels = Labels("Cost of a forward pass", "In ms:", "rows in one pass", "milliseconds")
    caption = "Where the curve is flat, scoring drafted beams as well is nearly free."
    return blocks.lines(labels, caption, series, doubling=True)


def _quality(story: Story) -> Figure:
    k = story.plan.k
    data = [
        Bar(label, found, tone=tone, note=f"{found:.3f}")
        for name, (label, tone) in _QUALITY.items()
        for found in [story.quality[name].recall[k]]
    ]
    labels = Labels(f"Recall@{k}", "", "share of users")
    caption = f"How often the book that was read next is among the {k} recommended ones."
    return blocks.bars(labels, caption, data)


def next_steps(story: Story, folder: Path) -> list[tuple[str, str]]:
    """Commands to go on with, and what they are for. The first two run as they stand."""
    rows, sids, found = (
        shlex.quote(str(folder / name))
        for name in ("sequences.jsonl", "sids.parquet", "top.parquet")
    )
    target, draft = (shlex.quote(str(story.plan.shipped / name)) for name in ("target", "draft"))
    return [
        (
            f"draftrec genrec recommend {rows} --sids {sids} --target {target} --draft {draft} "
            f"-k {story.plan.k} --exclude-seen --limit 2000 --shadow 0.05 --output {found}",
            "Recommend for 2,000 readers of the shop, one in twenty of them by plain search too:",
        ),
        (
            f"draftrec genrec evaluate {found} {rows} -k 1 {story.plan.k}",
            "See how good these lists are:",
        ),
        (
            "draftrec genrec fit sequences.parquet --sids sids.parquet --output target",
            "Train a target on your own sequences:",
        ),
    ]


def settings(story: Story) -> dict[str, str]:
    """How it was measured."""
    plan, shipped = story.plan, story.shipped
    card, tuned = shipped.card, shipped.items.settings
    return {
        "target": f"embedded, {shipped.parameters('target'):,} parameters",
        "draft": f"embedded, {shipped.parameters('draft'):,} parameters, {card['objective']}",
        "semantic ids": f"{card['levels']} levels of {card['codes']} codes, residual k-means",
        "device and dtype": "cpu, float32, one thread",
        "kept and drafted beams": f"K = {plan.k}, N = {plan.draft_beams}, three levels ahead",
        "proposed items": f"{plan.draft_items} rows more per level where a draft drafts too",
        "books read before": "not recommended again",
        "item-item": f"tuned on the valid part: decay {tuned.decay:g}, recency {tuned.recency:g}",
        "readers": f"{len(story.asked)} tested, co-occurrence from {len(shipped.readings):,}",
        "rounds": f"{len(story.timed[PLAIN].seconds)}, interleaved",
        "seed": str(card["seed"]),
    }


def to_json(story: Story) -> dict[str, Any]:
    """The content of `summary.json`."""
    arms, card, alone = make_arms(story), story.shipped.card, story.timed[PLAIN]
    return {
        "seed": card["seed"],
        "k": story.plan.k,
        "users": len(story.asked),
        "timed_users": len(alone.users),
        "rounds": len(alone.seconds),
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "wall_seconds": story.seconds,
        "parameters": {name: story.shipped.parameters(name) for name in ("target", "draft")},
        "arms": {name: _arm_json(arm, story) for name, arm in arms.items()},
        "users_at_once": [asdict(crowd) for crowd in story.crowds],
        "cost_curves": {name: curve.to_json() for name, curve in story.costs.items()},
        "quality": {name: scores.summary() for name, scores in story.quality.items()},
        "readers": [_reader_json(story, place) for place in shown(story, _READERS)],
        "findings": findings(story, arms),
        "machine": machine_facts(),
    }


def _reader_json(story: Story, place: int) -> dict[str, Any]:
    reader = _reader(story, place)
    before, *lists = reader.cards
    return {
        "title": reader.title,
        "before": [piece.text for piece in before.items],
        "following": _following(story, place),
        "lists": [
            [c.title, [{"title": p.text, "hit": p.marked} for p in c.items], c.tone] for c in lists
        ],
    }


def _arm_json(arm: Arm, story: Story) -> dict[str, Any]:
    return {
        "who_drafts": arm.drafts,
        "target_calls": arm.figures.target_calls,
        "accepted_steps": arm.figures.accepted_steps,
        "accepted_steps_per_call": arm.figures.accepted_steps_per_call,
        "users_by_target_calls": list(arm.calls),
        "recall": arm.recall,
        "ndcg": arm.ndcg,
        "identical": arm.identical,
        "identical_to": arm.same_as or None,
        "greatest_score_difference": (
            arm.figures.agreement.greatest_score_difference
            if arm.same_as == "plain search"
            else None
        ),
        "ms_per_user": arm.timed.ms_per_user,
        "wall_seconds": list(story.timed[arm.name].seconds),
        "walltime_speedup": asdict(arm.speedup) if arm.speedup else None,
    }
