"""What the ways of the items' story came to: figures by way, and what they mean in sentences."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np

from draftrec.demo.items import PLAIN, UNDRAFTED, WAYS, Story, as_beams
from draftrec.evaluate.beam_speed import BeamFigures, EngineRun, Spread, beam_figures

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
#: Colours of plots.
TONES = {PLAIN: 0, "draft": 1, "items": 3, "auto": 4, "sample": 5, "relaxed": 2}
_DRAFTS = {
    PLAIN: "nobody",
    "draft": "draft model",
    "items": "proposed items",
    "auto": "items, where it pays",
    "sample": "draft model",
    "relaxed": "draft model",
}
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
        tone=TONES[name],
    )


def _identical(story: Story, name: str, other: str) -> int:
    """Users whose list is the other way's, item by item; a strict way's timed lists count too."""
    pairs = zip(story.answers[name], story.answers[other], strict=True)
    same = [np.array_equal(a.items, b.items) for a, b in pairs]
    alone = story.timed[name].users
    for place, found in enumerate(alone):
        same[place] &= np.array_equal(found.items, story.answers[other][place].items)
    return sum(same)


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
