"""The demo of recommendation in numbers: `summary.json` and what the report shows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from draftrec.demo.genrec_report import BeamArm, Book, GenrecReport, Quality, Reader
from draftrec.demo.genrec_story import PLAIN, UNDRAFTED, WAYS, GenrecStory, as_beams, shown
from draftrec.demo.genrec_words import STRICT, findings, next_steps, settings
from draftrec.evaluate.beam_speed import BeamFigures, EngineRun, beam_figures
from draftrec.evaluate.report import Curve, machine_facts

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
_READERS, _BEFORE, _LISTED = 4, 5, 6


def make_report(story: GenrecStory, folder: Path) -> GenrecReport:
    """The page about a story whose files lie in `folder`."""
    arms = make_arms(story)
    plan = story.plan
    return GenrecReport(
        title="The same books, recommended six ways",
        lead=(
            f"{len(story.asked)} readers of an invented bookshop, {plan.k} books each out of "
            f"{len(story.shipped.titles):,}: a small language model writes the semantic ids of "
            "the books that come next, by plain beam search and by drafted beams."
        ),
        k=plan.k,
        alone=len(story.timed[PLAIN].users),
        rounds=len(story.timed[PLAIN].seconds),
        findings=tuple(findings(story, arms)),
        arms=tuple(arms.values()),
        quality=tuple(_quality(story)),
        readers=tuple(_reader(story, place) for place in shown(story, _READERS)),
        crowds=_crowds(story),
        costs=_costs(story),
        next_steps=tuple(next_steps(story, folder)),
        facts={"Settings": settings(story), "Machine": machine_facts()},
    )


def make_arms(story: GenrecStory) -> dict[str, BeamArm]:
    """The ways as the report shows them, by name."""
    targets, k = [h.targets for h in story.asked], story.plan.k
    whole = {name: EngineRun(as_beams(a), [1.0]) for name, a in story.answers.items()}
    figures = beam_figures(whole, PLAIN, [], targets, [k])
    timed = beam_figures(story.timed, PLAIN, [PLAIN])
    return {name: _arm(story, name, figures[name], timed[name]) for name in WAYS}


def _arm(story: GenrecStory, name: str, figures: BeamFigures, timed: BeamFigures) -> BeamArm:
    other = {"sample": UNDRAFTED, **dict.fromkeys(STRICT, PLAIN)}.get(name)
    answers = story.answers[name]
    calls = np.bincount([a.target_calls for a in answers], minlength=2)[1:]
    return BeamArm(
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


def _identical(story: GenrecStory, name: str, other: str) -> int:
    """Users whose list is the other way's, item by item; a strict way's timed lists count too."""
    pairs = zip(story.answers[name], story.answers[other], strict=True)
    same = [np.array_equal(a.items, b.items) for a, b in pairs]
    alone = story.timed[name].users
    for place, found in enumerate(alone):
        same[place] &= np.array_equal(found.items, story.answers[other][place].items)
    return sum(same)


def _quality(story: GenrecStory) -> list[Quality]:
    k = story.plan.k
    names = {
        "target": ("Target", 1),
        "item-item": ("Item-item", 0),
        "popularity": ("Popularity", 0),
    }
    return [
        Quality(label, story.quality[name].recall[k], story.quality[name].ndcg[k], tone)
        for name, (label, tone) in names.items()
    ]


def _reader(story: GenrecStory, place: int) -> Reader:
    asked, titles = story.asked[place], story.shipped.titles
    hit = set(asked.targets.tolist())

    def listed(name: str) -> tuple[Book, ...]:
        items = story.answers[name][place].items[:_LISTED].tolist()
        return tuple(Book(titles[item], item in hit) for item in items)

    before = tuple(titles[item] for item in asked.items[-_BEFORE:].tolist())
    following = ", ".join(titles[item] for item in asked.targets.tolist())
    lists = (
        (f"Recommended, first {_LISTED} (plain and strict)", listed(PLAIN), _TONES["draft"]),
        (f"Sampled, first {_LISTED}", listed("sample"), _TONES["sample"]),
    )
    return Reader(f"Reader {asked.user}", before, following, lists)


def _crowds(story: GenrecStory) -> tuple[Curve, ...]:
    sizes = tuple(float(crowd.users) for crowd in story.crowds)
    return tuple(
        Curve(
            LABELS[name], sizes, tuple(c.speedup[name].median for c in story.crowds), _TONES[name]
        )
        for name in STRICT
    )


def _costs(story: GenrecStory) -> tuple[Curve, ...]:
    tones = {"target": 0, "draft": 1}
    return tuple(
        Curve(
            f"{name}, {story.shipped.parameters(name) / 1e6:.2f} M",
            tuple(float(row) for row in curve.rows),
            tuple(1000 * s for s in curve.seconds),
            tones[name],
        )
        for name, curve in story.costs.items()
    )


def to_json(story: GenrecStory, report: GenrecReport) -> dict[str, Any]:
    """The content of `summary.json`."""
    card = story.shipped.card
    return {
        "seed": card["seed"],
        "k": story.plan.k,
        "users": len(story.asked),
        "timed_users": report.alone,
        "rounds": report.rounds,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "wall_seconds": story.seconds,
        "parameters": {name: story.shipped.parameters(name) for name in ("target", "draft")},
        "arms": {arm.name: _arm_json(arm, story) for arm in report.arms},
        "users_at_once": [asdict(crowd) for crowd in story.crowds],
        "cost_curves": {name: curve.to_json() for name, curve in story.costs.items()},
        "quality": {name: scores.summary() for name, scores in story.quality.items()},
        "readers": [asdict(reader) for reader in report.readers],
        "findings": list(report.findings),
        "machine": machine_facts(),
    }


def _arm_json(arm: BeamArm, story: GenrecStory) -> dict[str, Any]:
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
