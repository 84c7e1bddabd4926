"""The settings that `tune` tries with a model (acceptance rules, their knobs, budgets), and what it
makes of its trials: the frontier, the setting that it chooses, the settings file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

from draftrec.config import AcceptConfig
from draftrec.errors import DraftrecError
from draftrec.knobs import knob

if TYPE_CHECKING:
    from draftrec.jobs.trials import Scalar, Settings


#: Values of each rule's knobs, the published defaults among them. None leaves a cap out.
KNOBS: dict[str, dict[str, tuple[Scalar, ...]]] = {
    "strict": {},
    "relaxed": {
        "top_k": (2, 5),
        "min_prob": (0.03, 0.1, 0.2),
        "max_deviations": (None, 4),
    },
    "typical": {"epsilon": (0.09, 0.3), "delta": (0.3, 0.9, 2.0)},
    "entropy": {"entropy_gate": (0.03, 0.1, 0.3), "window": (2, 6)},
}
RULES = tuple(name for name in KNOBS if name != "strict")


@dataclass(frozen=True, slots=True)
class Space:
    """Rules out of `RULES` and budgets (draft nodes per text and pass). Strict is always tried.

    Raises DraftrecError for a rule that is not there, and for an empty list.
    """

    rules: Annotated[tuple[str, ...], knob("Rules to try, by commas; strict always is.")] = RULES
    budgets: Annotated[tuple[int, ...], knob("Budgets to try, by commas.")] = (16, 48)

    def __post_init__(self) -> None:
        unknown = [r for r in self.rules if r not in RULES]
        if unknown:
            raise DraftrecError(
                f"--rules has {unknown[0]!r}; known are {', '.join(RULES)} (strict is always tried)"
            )
        if not self.budgets or min(self.budgets) < 1 or len(set(self.budgets)) < len(self.budgets):
            raise DraftrecError("--budgets must be different whole numbers from 1 on")

    def strict(self) -> list[Settings]:
        """Strict acceptance under every budget."""
        return list(self._of("strict"))

    def grid(self) -> list[Settings]:
        """Every combination of every rule's values."""
        return [settings for rule in self.rules for settings in self._of(rule)]

    def draw(self, pick: Callable[[str, Seq[Scalar]], Any]) -> Settings:
        """One setting, each value chosen by `pick(name, values)`."""
        rule = str(pick("rule", self.rules))
        knobs = {name: pick(f"{rule}.{name}", values) for name, values in KNOBS[rule].items()}
        return {"rule": rule, "budget": pick("budget", self.budgets), **knobs}

    def _of(self, rule: str) -> Iterator[Settings]:
        knobs = KNOBS[rule]
        for budget, *values in product(self.budgets, *knobs.values()):
            yield {"rule": rule, "budget": budget, **dict(zip(knobs, values, strict=True))}


def accept_of(settings: Settings) -> AcceptConfig:
    """The acceptance rule of a trial, greedy."""
    knobs = {k: v for k, v in settings.items() if k not in ("rule", "budget") and v is not None}
    return AcceptConfig.model_validate({"accept": settings["rule"], **knobs})


def label_of(settings: Settings) -> str:
    """The setting in a few words."""
    parts = [f"{settings['rule']}, budget {settings['budget']}", knobs_label(settings)]
    return ", ".join(p for p in parts if p)


def knobs_label(settings: Settings) -> str:
    """The knobs of the setting's own rule that are set; empty for strict."""
    found = ((name, settings.get(name)) for name in KNOBS[str(settings["rule"])])
    return ", ".join(
        f"{name.replace('_', '-')} {value:g}"
        for name, value in found
        if isinstance(value, int | float)
    )


# On a quiet machine, rounds of one setting differ by a few per cent.
_UNREST = 1.15

#: A trial's settings and figures by name, as rows of the table of trials.
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LossLimits:
    """What a relaxed setting may cost. `max_loss_per_token` nats of log-probability per token of
    the text; `min_similarity` by TF-IDF, 1 for the model's own text and 0 for another entity's: a
    text that the model samples at temperature 0.5 has about 0.2; `max_length_drift` the relative
    change of the mean length, as shorter texts are faster for the wrong reason."""

    max_loss_per_token: Annotated[
        float, knob("Most nats given up per token of the text.", ge=0)
    ] = 0.05
    min_similarity: Annotated[
        float,
        knob("Least likeness by TF-IDF; 1: the model's own text, 0: another's.", le=1),
    ] = 0.2
    max_length_drift: Annotated[float, knob("Most relative change of the mean length.", ge=0)] = 0.1

    def keeps(self, row: Row) -> bool:
        """Does the trial stay within all of them?"""
        return (
            row["loss_per_token"] <= self.max_loss_per_token
            and row["similarity_kept"] >= self.min_similarity
            and abs(row["length_drift"]) <= self.max_length_drift
        )


def frontier(rows: Seq[Row], cost: Callable[[Row], float]) -> list[Row]:
    """The rows that no other row beats in both `speedup` and `cost`, from the cheapest on.

    Of rows that are equal in both, the first stays.
    """
    best = float("-inf")
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (cost(r), -r["speedup"])):
        if row["speedup"] > best:
            kept.append(row)
            best = row["speedup"]
    return kept


def choose(rows: Seq[Row], limits: LossLimits) -> Row:
    """The fastest setting within the limits.

    Strict unless a relaxed setting was faster in its slowest round than strict was in its median,
    and by processor time as well: chance alone must not cost the model's own text.
    """
    strict = fastest_strict(rows)
    faster = [
        r
        for r in rows
        if r["rule"] != "strict"
        and limits.keeps(r)
        and r["speedup_low"] > strict["speedup"]
        and r["cpu_speedup"] > strict["cpu_speedup"]
    ]
    return max([strict, *faster], key=lambda r: r["speedup"])


def fastest_strict(rows: Seq[Row]) -> Row:
    """Of the strict trials, one per budget, the fastest."""
    return max((r for r in rows if r["rule"] == "strict"), key=lambda r: r["speedup"])


def unrest(rows: Seq[Row]) -> str | None:
    """A sentence about how much rounds of one setting differed, if they did: the median, over the
    trials, of the highest speedup over the lowest."""
    ratio = median(r["speedup_high"] / r["speedup_low"] for r in rows)
    if ratio < _UNREST:
        return None
    return (
        f"Rounds of one setting differed by {ratio:.2f} times: the machine was busy with other "
        "things, so repeat this on a quiet one before you believe small differences."
    )


def chosen_yaml(
    row: Row,
    limits: LossLimits,
    depth: int,
    drafter: str | None = None,
    asked: Mapping[str, Any] | None = None,
) -> str:
    """The content of a settings file for `generate --config`, with the reasons as comments.
    `drafter`: the learned drafter that drafted as well; `asked`: other settings that it was timed
    under, whose speed is that of no other."""
    bounds = ", ".join(f"{name} {value:g}" for name, value in asdict(limits).items())
    lines = [
        f"# {row['speedup']:.2f} times plain decoding ({row['speedup_low']:.2f} to "
        f"{row['speedup_high']:.2f}), {row['tokens_per_call']:.2f} tokens per call",
        f"# loss per token {row['loss_per_token']:.4f} nats, similarity kept "
        f"{row['similarity_kept']:.3f}, {row['exact_match']:.0%} of the texts as the model's own",
        f"# the fastest within: {bounds}",
    ]
    if row["speedup"] <= 1.0:
        return "\n".join([*lines, "# Drafting did not pay here.", "draft: none"]) + "\n"
    knobs = {"accept": row["rule"], "budget": row["budget"], "depth": depth, **knobs_of(row)}
    if drafter:
        knobs["drafter"] = json.dumps(drafter)  # a quoted string of YAML's as well
    knobs |= asked or {}
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in knobs.items())]) + "\n"


def knobs_of(row: Row) -> Row:
    """The knobs of the row's own rule that are set."""
    return {name: row[name] for name in KNOBS[row["rule"]] if row.get(name) is not None}
