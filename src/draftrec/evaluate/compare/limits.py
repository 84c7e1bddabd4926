"""The figures that `draftrec compare` shows (names, labels, forms), limits on them, and their
verdicts: kept, broken, undecided, or not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from draftrec.config import Side
from draftrec.data.files.places import Place
from draftrec.data.files.texts import read_yaml
from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.quality import Estimate
from draftrec.evaluate.settings import Framework

Form = Literal["share", "number", "score"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. `form`: a share of 1 shown in percent, a number, or a score with four decimals.
    `paired`: it compares a run with the baseline, which itself has none. `whole`: it is taken of a
    run as a whole, and has no interval."""

    name: str
    label: str
    form: Form
    meaning: str
    paired: bool = False
    whole: bool = False

    def show(self, value: float | None) -> str:
        """A value as people read it."""
        return self._written(value, "", "%")

    def show_change(self, value: float | None) -> str:
        """A difference as people read it, with its sign."""
        return self._written(value, "+", "pp")

    def _written(self, value: float | None, sign: str, share: str) -> str:
        if value is None:
            return "-"
        if self.form == "share":
            return f"{100 * value:{sign}.1f} {share}"
        return f"{value:{sign},.2f}" if self.form == "number" else f"{value:{sign}.4f}"


_ALL = (
    Metric("new_tokens", "length", "number", "tokens per text, EOS included"),
    Metric("eos_rate", "EOS rate", "share", "texts that end by themselves"),
    Metric("exact_match", "exact match", "share", "texts that are the baseline's token for token",
           paired=True),
    Metric("common_prefix", "common prefix", "share",
           "tokens until the first difference from the baseline's text", paired=True),
    Metric("relaxed_share", "relaxed tokens", "share", "tokens that are not the model's first"),
    Metric("similarity", "similarity", "score", "cosine with the baseline's text of the entity",
           paired=True),
    Metric("similarity_kept", "similarity kept", "share",
           "1 as the baseline's own text, 0 as near to any other entity's", paired=True),
    Metric("vectors_equal", "equal vectors", "share", "texts whose vector is the baseline's",
           paired=True),
    Metric("distinct_1", "distinct-1", "share", "different tokens over tokens, whole run",
           whole=True),
    Metric("distinct_2", "distinct-2", "share", "different 2-grams over 2-grams, whole run",
           whole=True),
    Metric("distinct_3", "distinct-3", "share", "different 3-grams over 3-grams, whole run",
           whole=True),
    Metric("text_distinct_1", "distinct-1 per text", "share", "the same within a text, mean"),
    Metric("text_distinct_2", "distinct-2 per text", "share", "the same within a text, mean"),
    Metric("text_distinct_3", "distinct-3 per text", "share", "the same within a text, mean"),
    Metric("self_bleu", "self-BLEU", "score", "BLEU-4 with texts of other entities of the run"),
    Metric("copied_texts", "copied texts", "share", "texts that another entity of the run has too"),
    Metric("repetition", "repetition", "share", "4-grams that a text has written before"),
    Metric("titles_named", "titles named", "number", "titles of the catalogue per text"),
    Metric("titles_grounded", "titles grounded", "share", "of those named: in the own prompt"),
    Metric("titles_leaked", "titles leaked", "number",
           "per text: in another entity's prompt only; the excess over the baseline counts"),
    Metric("titles_foreign", "titles in no prompt", "number",
           "per text: known to the model or invented, not decidable"),
    Metric("template_valid", "valid form", "share", "texts of the form that the framework asks"),
    Metric("missing_share", "entities missing", "share", "entities of the baseline without a text",
           paired=True),
    Metric("other_prompts", "other prompts", "share", "texts that answer another prompt",
           paired=True),
    Metric("auc", "AUC", "score", "click models that read texts, mean over models and adaptors"),
    Metric("logloss", "LogLoss", "score",
           "click models that read texts, mean over models and adaptors"),
)  # fmt: skip

#: By name, in the order in which reports show them.
METRICS = {metric.name: metric for metric in _ALL}
#: What trained models are measured by: intervals over seeds, not over entities.
CTR_METRICS = ("auc", "logloss")


Outcome = Literal["kept", "broken", "undecided", "not measured"]
Scale = Literal["value", "change", "relative"]

_DEFAULT = Path(__file__).parent / "limits_default.yaml"
_SCALES: Mapping[str, tuple[Scale, Literal["min", "max"]]] = {
    "min": ("value", "min"),
    "max": ("value", "max"),
    "min_change": ("change", "min"),
    "max_change": ("change", "max"),
    "min_relative": ("relative", "min"),
    "max_relative": ("relative", "max"),
}
#: Sums of rounded shares may miss a bound by this much.
_ROUNDING = 1e-9


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Limit(_Strict):
    """Bounds of one figure; see `limits_default.yaml`. At least one must be given."""

    min: float | None = None
    max: float | None = None
    min_change: float | None = None
    max_change: float | None = None
    min_relative: float | None = None
    max_relative: float | None = None
    required: bool = False

    def bounds(self) -> Iterator[tuple[str, float]]:
        """The bounds that are set, by key."""
        for key in _SCALES:
            value = getattr(self, key)
            if value is not None:
                yield key, value


class FormSettings(_Strict):
    """What `template_valid` checks; what is not set comes from the runs' manifests."""

    framework: Framework | None = None
    side: Side | None = None
    factors: tuple[str, ...] | None = None
    min_factors: int = Field(default=1, ge=0)


class Limits(_Strict):
    """The content of a limits file. `columns`: the figures that reports show; None = all."""

    min_entities: int = Field(default=20, ge=1)
    min_seeds: int = Field(default=3, ge=2)
    undecided: Literal["fail", "pass"] = "fail"
    limits: dict[str, Limit] = Field(default_factory=dict)
    strict: dict[str, Limit] = Field(default_factory=dict)
    columns: tuple[str, ...] | None = None
    form: FormSettings = FormSettings()

    @field_validator("limits", "strict")
    @classmethod
    def _known(cls, value: dict[str, Limit]) -> dict[str, Limit]:
        for name, limit in value.items():
            _check_name(name)
            if not any(limit.bounds()):
                raise ValueError(f"{name} has no bound; give one of {', '.join(_SCALES)}")
        return value

    @field_validator("columns")
    @classmethod
    def _shown(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in value or ():
            _check_name(name)
        return value


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure of one run: its value, and its difference from the baseline's, plain and relative
    (of one). None where it cannot be measured. `samples`: entities or seeds behind it, None for a
    count that is exact."""

    value: Estimate | None = None
    change: Estimate | None = None
    relative: Estimate | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one bound: `key` as in the file, `found` the estimate that it bounds."""

    run: str
    metric: str
    key: str
    bound: float
    found: Estimate | None
    outcome: Outcome
    reason: str = ""


def default_limits() -> Limits:
    """The limits that apply where no file says otherwise."""
    return _validated(_default_content(), _DEFAULT)


def read_limits(path: Place) -> Limits:
    """A limits file laid over the default limits: metric by metric, `null` drops one.

    Raises DraftrecError for a file that cannot be read, unknown keys and unknown metrics.
    """
    content = read_yaml(path, "the limits")
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise DraftrecError(f"the limits {path} must hold `limits:` with a line per metric")
    merged = {**_default_content(), **content}
    for section in ("limits", "strict"):
        merged[section] = _laid_over(_default_content()[section], content.get(section), path)
    return _validated(merged, path)


def judge(
    run: str, measured: Mapping[str, Measured], limits: Limits, *, equal: bool
) -> list[Verdict]:
    """The verdict on every bound. `equal`: the run must equal its baseline, so that the limits of
    the section `strict` hold too."""
    sections = (limits.limits, limits.strict) if equal else (limits.limits,)
    return [
        _Bound(run, name, key, bound).verdict(measured.get(name), limit, limits)
        for section in sections
        for name, limit in section.items()
        for key, bound in limit.bounds()
    ]


def passed(verdicts: Iterable[Verdict], limits: Limits) -> bool:
    """Whether the gate lets the runs through."""
    stops = {"broken"} if limits.undecided == "pass" else {"broken", "undecided"}
    return all(v.outcome not in stops for v in verdicts)


@dataclass(frozen=True, slots=True)
class _Bound:
    run: str
    metric: str
    key: str
    bound: float

    def verdict(self, measured: Measured | None, limit: Limit, limits: Limits) -> Verdict:
        if measured is None:
            if limit.required:
                return self._say(None, "broken", "required, but not measured")
            return self._say(None, "not measured")
        found: Estimate | None = getattr(measured, _SCALES[self.key][0])
        if found is None:
            return self._say(None, "undecided", "the baseline's value is missing or zero")
        if self._outside(found.value):
            return self._say(found, "broken")
        ctr = self.metric in CTR_METRICS
        least, things = (
            (limits.min_seeds, "seeds or splits") if ctr else (limits.min_entities, "entities")
        )
        if measured.samples is not None and measured.samples < least:
            reason = f"{measured.samples} of the {least} {things} that the limits ask for"
            return self._say(found, "undecided", reason)
        worst = found.low if _SCALES[self.key][1] == "min" else found.high
        if worst is None and not METRICS[self.metric].whole:
            return self._say(found, "undecided", f"too few {things} show it at all")
        if worst is not None and self._outside(worst):
            reason = f"the interval reaches past the bound; more {things} would tell"
            return self._say(found, "undecided", reason)
        return self._say(found, "kept")

    def _outside(self, value: float) -> bool:
        if _SCALES[self.key][1] == "min":
            return value < self.bound - _ROUNDING
        return value > self.bound + _ROUNDING

    def _say(self, found: Estimate | None, outcome: Outcome, reason: str = "") -> Verdict:
        return Verdict(self.run, self.metric, self.key, self.bound, found, outcome, reason)


@cache
def _default_content() -> dict[str, Any]:
    return read_yaml(_DEFAULT, "the limits")


def _laid_over(base: dict[str, Any], own: Any, path: Place) -> dict[str, Any]:
    if own is None:
        return base
    if not isinstance(own, dict):
        raise DraftrecError(f"the limits {path} must hold a line per metric under each section")
    return {name: limit for name, limit in {**base, **own}.items() if limit is not None}


def _validated(content: dict[str, Any], path: Place) -> Limits:
    try:
        return Limits.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        if first["type"] == "extra_forbidden":
            known = ", ".join(_SCALES) if len(first["loc"]) > 2 else ", ".join(Limits.model_fields)
            problem = f"has the unknown key {place!r}; known are {known}"
        else:
            problem = f"is wrong at {place}: {first['msg'].removeprefix('Value error, ')}"
        raise DraftrecError(f"the limits {path} {problem}") from error


def _check_name(name: str) -> None:
    if name not in METRICS:
        raise ValueError(f"{name!r} is no metric; known are {', '.join(METRICS)}")
