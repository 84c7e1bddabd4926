"""What a job says it did: how its texts ended, what drafting was worth, and why not more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from draftrec.core import IntArray

if TYPE_CHECKING:
    from draftrec.core import Generation
    from draftrec.engine.costs import PassCosts
    from draftrec.engine.text.stats import StepStats

# A text loops if it ends in so many times the same tokens, and in so many tokens of that kind.
_LOOP_TIMES, _LOOP_TOKENS = 4, 32
# A share that is shown as 0 %.
_NOTHING = 0.005


@dataclass(slots=True)
class Endings:
    """How so many `texts` ended: `cut` at their limit, `empty` (nothing but white space), `looping`
    (see `loops`). One text may be several of these."""

    texts: int = 0
    cut: int = 0
    empty: int = 0
    looping: int = 0

    def add(self, generation: Generation, text: str) -> None:
        """Count one text."""
        ended = generation.finish_reason == "eos"
        ids = generation.token_ids
        self.texts += 1
        self.cut += generation.finish_reason == "length"
        self.empty += not text.strip()
        self.looping += loops(ids[:-1] if ended else ids)

    def warning(self, max_new_tokens: int) -> str | None:
        """What is wrong with most of the texts, and what to do; None if nothing is."""
        most = self.texts / 2
        if self.empty > most:
            return (
                f"{self.empty:,} of {self.texts:,} texts are empty: the model ends at once; see "
                f"whether it expects a chat template (--chat, --no-chat) and what its prompts are"
            )
        if self.looping > most:
            return (
                f"{self.looping:,} of {self.texts:,} texts end in a loop, the same words again "
                f"and again; try --repetition-penalty 1.1, or a model that follows instructions"
            )
        if self.cut > most:
            return (
                f"{self.cut:,} of {self.texts:,} texts were cut at {max_new_tokens:,} new tokens; "
                f"raise --max-new-tokens, or ask for less in the prompt"
            )
        return None


def loops(ids: IntArray) -> bool:
    """Whether a text, int32 `[n]` without its end-of-text token, ends in a loop: one sequence of
    tokens at least four times in a row, the last time perhaps not to its end, over at least 32
    tokens."""
    n = len(ids)
    if n < _LOOP_TOKENS:
        return False
    longest = n // _LOOP_TIMES
    before = ids[n - 1 - longest : n - 1][::-1]
    for period in (np.flatnonzero(before == ids[-1]) + 1).tolist():
        tail = ids[n - max(_LOOP_TIMES * period, _LOOP_TOKENS) :]
        if (tail[period:] == tail[:-period]).all():
            return True
    return False


def curve_seconds(curve: PassCosts, step: StepStats, together: int) -> tuple[float, float]:
    """Seconds of a step's verifying by the cost curve, and of what would have written the same
    tokens without drafts: the pass itself without them, then as many passes more, over the same
    texts, as each of them got tokens beyond the first. Rows of prompts run in either case; while
    there are some, more texts are about to join, and the tokens beyond the first would be written
    when `together` of them run."""
    texts = step.scored
    if not texts:
        return 0.0, 0.0
    prompt = step.rows - texts - step.drafted_tokens
    beside = max(texts, together) if prompt else texts
    whole, without, alone = curve([step.rows, prompt + texts, beside]).tolist()
    verifying = whole * (texts + step.drafted_tokens) / step.rows
    first = without * texts / (prompt + texts)
    return verifying, first + (step.new_tokens - texts) * alone / beside


def pool_note(
    summary: Mapping[str, Any], settings: Mapping[str, Any], costs: Mapping[str, Any] | None
) -> str | None:
    """Why nothing came from the pool, or None if something did. `costs`: the generator's state."""
    if not summary["new_tokens"] or summary["pool_share"] >= _NOTHING:
        return None
    if summary["draft"] != "pool":
        return f"none was asked, with --draft {summary['draft']}"
    if settings["budget"] == 0:
        return "nothing may be drafted with --budget 0"
    slots = (costs or {}).get("slots", settings["batch_size"])
    written = summary["texts"] - summary["kept"] * settings["n"]
    if summary["texts"] == 1 and not settings["known"]:
        return "there was no other text to draft from; more records, or a --pool, would change that"
    if slots != "auto" and written <= slots and not settings["known"]:
        return (
            f"all texts were written together, {slots} at a time, so that hardly one was finished "
            f"before another began; more records, or a --pool of earlier texts, would change that"
        )
    if settings["budget"] == "auto" and costs and "rows" in costs and slots != "auto":
        drafted = summary["drafted_tokens"] / summary["target_calls"]
        if drafted < 1.0:
            return _too_dear(costs, slots)
    return (
        f"of {summary['drafted_tokens']:,} drafted tokens the model took none from there: the "
        f"texts share too few phrases, or there are too few of them"
    )


def _too_dear(costs: Mapping[str, Any], slots: int) -> str:
    from draftrec.engine.costs import CostCurve

    plain, double = CostCurve.from_json(dict(costs))([slots, 2 * slots]).tolist()
    return (
        f"drafts hardly pay with this model here, so few were tried: a pass over {slots} rows "
        f"takes {1000 * plain:.3g} ms and one over {2 * slots} rows {1000 * double:.3g} ms"
    )


def lines(summary: Mapping[str, Any]) -> list[str]:
    """What the summary of a job says, for people; the first line is about how much was done."""
    s = summary
    if not s["new_tokens"]:
        return []
    told = _drafting(s)
    told.append(
        f"texts cut at the limit: {s['cut_texts']:,}{_unfinished(s)}, "
        f"empty: {s['empty_texts']:,}, looping: {s['looping_texts']:,}"
    )
    chat = {True: "with", False: "without", None: "unknown"}[s["chat"]]
    told.append(
        f"{s['dtype']} on {s['device']}, threads: {s['threads'] or 'unknown'}, {chat} chat "
        f"template; {_exactness(s)}"
    )
    return told


def _unfinished(s: Mapping[str, Any]) -> str:
    """What else is to be known of texts that were cut."""
    if not s["cut_texts"] or s["structure"] is None:
        return ""
    option = s["structure"].replace("_", "-")
    return f" (unfinished, so they need not have the form of --{option})"


def _drafting(s: Mapping[str, Any]) -> list[str]:
    """What drafts brought: speed, tokens per call and whose they were."""
    if s["draft"] == "none":
        return ["plain decoding: nothing was drafted, with --draft none"]
    told: list[str] = []
    if s["times_plain"] is not None:
        told.append(
            f"{s['times_plain']:.2f} times as fast as without drafts, estimated from what passes "
            f"cost here, drafting included"
        )
    shares = {name: share for name, share in s["share_by_source"].items() if share > 0}
    sources = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    told.append(
        f"{s['tokens_per_call']:.2f} tokens per call: {sum(shares.values()):.0%} of all tokens "
        f"were drafted{sources and f' ({sources})'}, {s['acceptance_rate']:.0%} of drafts were "
        f"accepted"
    )
    if s["pool_note"]:
        told.append(f"nothing came from the pool: {s['pool_note']}")
    return told


def _exactness(s: Mapping[str, Any]) -> str:
    if s["accept"] != "strict":
        # Sampled texts have many tokens that are no first choice, and were drawn all the same.
        share = f"{s['relaxed_share']:.1%} of tokens"
        return f"{s['accept']}: {share} are drafts in place of the model's own choice"
    return f"strict: texts are those of plain decoding, {s['exact']}"


def exactness(accept: str, dtype: str, *, exact: bool = False) -> str:
    """What strict means here: equal to plain decoding `bit for bit` where rows are computed so
    (`exact`), `token for token`, or `up to rounding` where passes of different shapes round
    differently and near-ties are common; `no` for rules that change texts."""
    if accept != "strict":
        return "no"
    if exact:
        return "bit for bit"
    return "token for token" if dtype.endswith(("float32", "float64")) else "up to rounding"
