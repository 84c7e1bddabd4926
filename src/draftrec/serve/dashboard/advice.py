"""Advice: rules from a run's figures to a sentence, or to none."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from draftrec.core import ratio
from draftrec.serve.dashboard.quality import Evaluation
from draftrec.serve.dashboard.run_data import RunData

#: Tokens from which on a run's rates mean something.
_LEAST_TOKENS = 500
_SMALL_POOL = 2000


@dataclass(frozen=True, slots=True)
class Advice:
    """`about`: the run or evaluation. `weight`: "act" costs something now, "consider" might."""

    about: str
    weight: Literal["act", "consider", "good"]
    text: str


#: A run and all runs of the same job, itself included.
Rule = Callable[[RunData, Seq[RunData]], Advice | None]


def advise(runs: Seq[RunData], evaluations: Seq[Evaluation]) -> list[Advice]:
    """All advice, the most pressing first."""
    found = [advice for e in evaluations if (advice := gate_closed(e)) is not None]
    for run in runs:
        if run.totals["new_tokens"] < _LEAST_TOKENS:
            continue
        same = [r for r in runs if r.same_job == run.same_job]
        said = [advice for rule in RULES if (advice := rule(run, same)) is not None]
        found += said or _all_well(run)
    order = {"act": 0, "consider": 1, "good": 2}
    return sorted(found, key=lambda a: order[a.weight])


def gate_closed(evaluation: Evaluation) -> Advice | None:
    """A comparison that broke a limit."""
    if evaluation.verdict != "closed":
        return None
    text = "The gate is closed: a limit was broken or could not be decided; see the table below."
    return Advice(evaluation.name, "act", text)


def slower_than_plain(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Drafting must not lose."""
    if run.speedup is None or run.speedup >= 0.98 or run.baseline.kind != "run":
        return None
    loss = f"{_number(run.speedup, 2)} times as fast as {run.baseline.name}, which drafts nothing"
    if isinstance(run.settings["budget"], int):
        return _act(
            run,
            f"This run is {loss}. Use --budget auto, which drafts only while it pays.",
        )
    return _act(
        run,
        f"This run is {loss}. Short runs spend much of their time on measuring costs; if a longer "
        f"one is as slow, use --draft none here.",
    )


def budget_too_large(run: RunData, same: Seq[RunData]) -> Advice | None:
    """A fixed budget of which little is kept."""
    budget, totals = run.settings["budget"], run.totals
    rate = run.rates["acceptance_rate"]
    if not isinstance(budget, int) or not totals["draft_calls"] or rate >= 0.2:
        return None
    if totals["drafted_tokens"] / totals["draft_calls"] < 8:
        return None
    return _act(
        run,
        f"The budget is too large: of {budget} draft tokens per text and pass only "
        f"{_percent(rate)} are kept, {_number(run.rates['mean_accepted_tokens'], 1)} per pass. Use "
        f"--budget auto, or a smaller number.",
    )


def pool_too_small(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Drafts from a small pool that are rarely right."""
    pool = run.pool
    if run.settings["draft"] != "pool" or pool is None or pool.texts >= _SMALL_POOL:
        return None
    share = (run.by_source["group"] + run.by_source["all"]) / run.totals["new_tokens"]
    if share >= 0.4:
        return None
    return _consider(
        run,
        f"The pool is small: its {pool.texts:,} texts foretold {_percent(share)} of the new "
        f"tokens. Add texts of earlier runs with draftrec pool add, or keep this run's with "
        f"--save-pool.",
    )


def relaxed_gains_nothing(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Relaxed texts are not the model's own; that should buy something over strict ones with the
    same drafts."""
    if run.settings["accept"] == "strict" or run.settings["draft"] == "none":
        return None
    share = run.rates["relaxed_share"]
    alike = [r for r in same if r.same_drafts == run.same_drafts]
    stricts = [r for r in alike if r.settings["accept"] == "strict"]
    strict = max(stricts, key=lambda r: r.rates["tokens_per_second"], default=None)
    if strict is not None:
        gain = ratio(run.rates["tokens_per_second"], strict.rates["tokens_per_second"])
        if gain >= 1.05 or not gain:
            return None
        return _act(
            run,
            f"Relaxed acceptance gains nothing here: {_number(gain, 2)} times the speed of "
            f"{strict.name}, and {_percent(share, 1)} of the tokens are not the model's own. Use "
            f"--accept strict.",
        )
    if share >= 0.005:
        return None
    return _consider(
        run,
        f"Relaxed acceptance hardly ever applies: {_percent(share, 2)} of the tokens. Strict "
        f"would be as fast, and keeps the model's own texts.",
    )


def drafting_rests(run: RunData, same: Seq[RunData]) -> Advice | None:
    """`--budget auto` that found little worth drafting."""
    if run.settings["draft"] == "none" or run.settings["budget"] != "auto":
        return None
    share = ratio(run.totals["draft_calls"], run.totals["target_calls"])
    if share >= 0.35:
        return None
    return _consider(
        run,
        f"Drafting rests, because it would not pay: only {_percent(share)} of the calls had a "
        f"draft. At large batches a pass is busy without drafts, and a smaller --batch-size may "
        f"be faster per text; a larger or closer pool helps at any size.",
    )


def drafting_is_slow(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Time spent on proposing instead of on the model."""
    share = ratio(run.totals["draft_seconds"], run.totals["wall_seconds"])
    if share < 0.15:
        return None
    return _consider(
        run,
        f"Drafting itself takes {_percent(share)} of the time. A smaller --budget or --depth, or "
        f"a pool of one index (draftrec pool build --levels all) makes it cheaper.",
    )


def idle_pools(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Groups whose pool costs memory and gave nothing."""
    if run.pool is None or run.state != "finished":
        return None
    used = {g.name for g in run.groups if g.from_pool}
    idle = {name: size for name, size in run.pool.sizes.items() if name not in used}
    total = sum(idle.values())
    if total < 0.25 * run.pool.nbytes:
        return None
    return _consider(
        run,
        f"{len(idle)} of {len(run.pool.sizes)} group pools gave this run nothing; they are "
        f"{_number(total / 1e6, 1)} of the pool's {_number(run.pool.nbytes / 1e6, 1)} MB. "
        f"draftrec pool prune drops what is used least.",
    )


def long_prompts(run: RunData, same: Seq[RunData]) -> Advice | None:
    """Time that no draft can save."""
    share = ratio(run.totals["prefill_seconds"], run.totals["wall_seconds"])
    if share < 0.4:
        return None
    return _consider(
        run,
        f"Prompts take {_percent(share)} of the time, and drafts cannot shorten that. Put what all "
        f"prompts share at their start, where it is computed once.",
    )


def no_baseline(run: RunData, same: Seq[RunData]) -> Advice | None:
    """A speedup needs something to be compared with."""
    if run.baseline.kind not in ("none", "estimate"):
        return None
    return _consider(
        run,
        "There is no run without drafts beside this one, so its speedup is not measured. Run the "
        "same command with --draft none --limit N into another folder, and this one with that "
        "limit.",
    )


RULES: tuple[Rule, ...] = (
    slower_than_plain,
    budget_too_large,
    relaxed_gains_nothing,
    pool_too_small,
    drafting_rests,
    drafting_is_slow,
    idle_pools,
    long_prompts,
    no_baseline,
)


def _all_well(run: RunData) -> list[Advice]:
    if run.speedup is None or run.baseline.kind != "run":
        return []
    text = f"{_number(run.speedup, 2)} times as fast as {run.baseline.name}. Nothing to mend."
    return [Advice(run.name, "good", text)]


def _act(run: RunData, text: str) -> Advice:
    return Advice(run.name, "act", text)


def _consider(run: RunData, text: str) -> Advice:
    return Advice(run.name, "consider", text)


def _number(value: float, digits: int = 0) -> str:
    """Rounded as the page's own figures: by the decimals that people see, halves upward (1.005 is
    1.01), where Python would round the binary number and halves to even."""
    step = Decimal(1).scaleb(-digits)
    return f"{Decimal(repr(float(value))).quantize(step, ROUND_HALF_UP):,}"


def _percent(share: float, digits: int = 0) -> str:
    return f"{_number(100 * share, digits)} %"
