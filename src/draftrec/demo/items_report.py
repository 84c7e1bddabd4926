"""The items' story as a report and as `summary.json`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.demo.items import PLAIN, UNDRAFTED, WAYS, Story, as_beams, shown
from draftrec.demo.texts_report import speedup_bar, speedup_cell
from draftrec.evaluate.beam_speed import BeamFigures, EngineRun, Spread, beam_figures
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

#: The ways that answer as plain search does.
STRICT = ("draft", "items", "auto")
LABELS = {
    PLAIN: "Plain",
    "draft": "Strict, draft",
    "items": "Strict, items",
    "auto": "Strict, auto",
    "sample": "Sample",
    "relaxed": "Relaxed",
}
_DRAFTS = {
    PLAIN: "nobody",
    "draft": "draft model",
    "items": "proposed items",
    "auto": "items, where it pays",
    "sample": "draft model",
    "relaxed": "draft model",
}
_TONES = {PLAIN: 0, "draft": 1, "items": 3, "auto": 4, "sample": 5, "relaxed": 2}
#: Recommenders whose quality is shown, with their tones; the grey ones have no model.
_QUALITY = {"target": ("Target", 1), "item-item": ("Item-item", 0), "popularity": ("Popularity", 0)}
_READERS, _READERS_ON_TERMINAL, _BEFORE, _LISTED = 4, 2, 5, 6
#: Speedups nearer to 1 than this are called equal.
_EVEN = 0.05
#: Rounds whose speedups differ by more than this factor tell of a busy machine.
_UNSTEADY = 1.3


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of recommending. `figures` are of all users, `timed` of those against the clock,
    `speedup` over plain search (None for itself). `identical` of `users` lists are those of
    `same_as`; None where they are not meant to be. `calls[i]` counts users with i + 1 target calls.
    """

    name: str
    label: str
    drafts: str
    users: int
    figures: BeamFigures
    timed: BeamFigures
    speedup: Spread | None
    identical: int | None
    same_as: str
    calls: tuple[int, ...]
    recall: float
    ndcg: float
    tone: int


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


def make_arms(story: Story) -> dict[str, Arm]:
    """The ways as the report shows them, by name."""
    targets, k = [h.targets for h in story.asked], story.plan.k
    whole = {name: EngineRun(as_beams(a), [1.0]) for name, a in story.answers.items()}
    figures = beam_figures(whole, PLAIN, [], targets, [k])
    timed = beam_figures(story.timed, PLAIN, [PLAIN])
    return {name: _arm(story, name, figures[name], timed[name]) for name in WAYS}


def _arm(story: Story, name: str, figures: BeamFigures, timed: BeamFigures) -> Arm:
    other = {"sample": UNDRAFTED, **dict.fromkeys(STRICT, PLAIN)}.get(name)
    answers = story.answers[name]
    calls = np.bincount([a.target_calls for a in answers], minlength=2)[1:]
    return Arm(
        name=name,
        label=LABELS[name],
        drafts=_DRAFTS[name],
        users=len(answers),
        figures=figures,
        timed=timed,
        speedup=None if name == PLAIN else timed.speedup[PLAIN],
        identical=_identical(story, name, other) if other else None,
        same_as={UNDRAFTED: "a sample without drafts", PLAIN: "plain search"}.get(other or "", ""),
        calls=tuple(calls.tolist()),
        recall=figures.recall[story.plan.k],
        ndcg=figures.ndcg[story.plan.k],
        tone=_TONES[name],
    )


def _identical(story: Story, name: str, other: str) -> int:
    """Users whose list is the other way's, item by item; a strict way's timed lists count too."""
    pairs = zip(story.answers[name], story.answers[other], strict=True)
    same = [np.array_equal(a.items, b.items) for a, b in pairs]
    alone = story.timed[name].users
    for place, found in enumerate(alone):
        same[place] &= np.array_equal(found.items, story.answers[other][place].items)
    return sum(same)


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
        Card(plain, _TONES["draft"], items=listed(PLAIN)),
        Card(f"Sampled, first {_LISTED}", _TONES["sample"], items=listed("sample")),
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
        Series(LABELS[n], sizes, [c.speedup[n].median for c in story.crowds], _TONES[n])
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


def findings(story: Story, arms: dict[str, Arm]) -> list[str]:
    """What the numbers mean, in sentences."""
    k, users = story.plan.k, len(story.asked)
    plain, draft, items, auto = (arms[name] for name in (PLAIN, *STRICT))
    target, near, popular = (story.quality[n] for n in ("target", "item-item", "popularity"))
    return [
        _strict_finding(arms, users),
        f"Plain search asks the target {plain.figures.target_calls:.0f} times for a user, once a "
        f"level. With an aligned draft, {_ratio(story)} times smaller, "
        f"{draft.figures.target_calls:.2f} calls do; with items proposed by co-occurrence, which "
        f"cost no pass of a model, {items.figures.target_calls:.2f}.",
        f"For one user at a time, strict search was {_times(draft)} with the draft, "
        f"{_times(items)} with proposed items, and {_times(auto)} with as many of them as pay by "
        "what it measured, which is what draftrec genrec recommend does unless told otherwise."
        + _busy((draft, items, auto)),
        _crowd_finding(story),
        f"Samples drawn with a draft are the ones that the target draws alone, for "
        f"{arms['sample'].identical} of {users} readers: nothing is relaxed. Relaxed verification "
        f"is there to compare with: it keeps accepted beams by lot, and Recall@{k} is "
        f"{arms['relaxed'].recall:.3f} where the target's best {k} reach {plain.recall:.3f} and "
        f"exact samples {arms['sample'].recall:.3f}.",
        f"The next book is among {k} recommended ones for {target.recall[k]:.1%} of the readers; "
        f"item-item co-occurrence, tuned, finds {near.recall[k]:.1%}, popularity "
        f"{popular.recall[k]:.1%}. {_counting(near.recall[k] > target.recall[k])}These readers are "
        "invented and more orderly than people, so the figures say nothing about your data.",
        "The models are tiny. A pass of a large target on a GPU costs far more than one of its "
        "draft, and its rows far less than here: measure there before you decide.",
    ]


def _busy(arms: Seq[Arm]) -> str:
    """A warning where rounds differ so much that their medians say little."""
    ranges = [arm.speedup.high / arm.speedup.low for arm in arms if arm.speedup]
    if max(ranges) < _UNSTEADY:
        return ""
    return (
        f" Rounds differed by up to {max(ranges):.1f} times, so this machine was busy with other "
        "work: trust the target calls, and time it again when it is idle."
    )


def _counting(better: bool) -> str:  # noqa: FBT001
    """A word on a baseline that wins."""
    return "Where series decide so much, counting beats a model this small. " if better else ""


def _strict_finding(arms: dict[str, Arm], users: int) -> str:
    strict = [arms[name] for name in STRICT]
    if all(arm.identical == users for arm in strict):
        return (
            f"All three strict ways returned plain search's own list for each of the {users} "
            "readers, book by book. Whoever drafts, the target's scores decide."
        )
    worst = min(arm.identical or 0 for arm in strict)
    return f"Only {worst} of {users} strict lists equal plain search's; please report this."


def _times(arm: Arm) -> str:
    assert arm.speedup
    speed = arm.speedup.median
    if abs(speed - 1) < _EVEN:
        return f"as fast as plain search ({speed:.2f} times)"
    return f"{speed:.2f} times as fast" if speed > 1 else f"slower ({speed:.2f} times as fast)"


def _crowd_finding(story: Story) -> str:
    last = story.crowds[-1]
    speed = {name: spread.median for name, spread in last.speedup.items()}
    words = (
        f"{speed['draft']:.2f} times as fast as plain search with the draft, {speed['items']:.2f} "
        f"with proposed items and {speed['auto']:.2f} with as many of them as pay"
    )
    if min(speed["draft"], speed["items"]) >= 1 + _EVEN:
        return f"With {last.users} users at once strict search was {words}."
    return (
        f"With {last.users} users at once it was {words}. A CPU is busy with so many rows, and "
        "drafts are rows of which most are thrown away: always drafting does not pay there. "
        "--draft-steps auto, the default, measures passes and plans for that."
    )


def _ratio(story: Story) -> str:
    return f"{story.shipped.parameters('target') / story.shipped.parameters('draft'):.0f}"


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
