"""The settings that `tune` tries with a model: acceptance rules, their knobs, and budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from draftrec.config import AcceptConfig
from draftrec.errors import DraftrecError

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

    rules: tuple[str, ...] = RULES
    budgets: tuple[int, ...] = (16, 48)

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
