"""What the demo of recommendation says about its numbers, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence as Seq
from pathlib import Path

from draftrec.demo.genrec_report import BeamArm
from draftrec.demo.genrec_story import PLAIN, GenrecStory

#: The ways that answer as plain search does.
STRICT = ("draft", "items", "auto")
#: Speedups nearer to 1 than this are called equal.
_EVEN = 0.05
#: Rounds whose speedups differ by more than this factor tell of a busy machine.
_UNSTEADY = 1.3


def findings(story: GenrecStory, arms: dict[str, BeamArm]) -> list[str]:
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


def _busy(arms: Seq[BeamArm]) -> str:
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


def _strict_finding(arms: dict[str, BeamArm], users: int) -> str:
    strict = [arms[name] for name in STRICT]
    if all(arm.identical == users for arm in strict):
        return (
            f"All three strict ways returned plain search's own list for each of the {users} "
            "readers, book by book. Whoever drafts, the target's scores decide."
        )
    worst = min(arm.identical or 0 for arm in strict)
    return f"Only {worst} of {users} strict lists equal plain search's; please report this."


def _times(arm: BeamArm) -> str:
    assert arm.speedup
    speed = arm.speedup.median
    if abs(speed - 1) < _EVEN:
        return f"as fast as plain search ({speed:.2f} times)"
    return f"{speed:.2f} times as fast" if speed > 1 else f"slower ({speed:.2f} times as fast)"


def _crowd_finding(story: GenrecStory) -> str:
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


def _ratio(story: GenrecStory) -> str:
    return f"{story.shipped.parameters('target') / story.shipped.parameters('draft'):.0f}"


def next_steps(story: GenrecStory, folder: Path) -> list[tuple[str, str]]:
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


def settings(story: GenrecStory) -> dict[str, str]:
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
