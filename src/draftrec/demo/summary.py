"""The story in numbers and in plain words: `summary.json` and the report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from draftrec.core import SOURCES, Generation
from draftrec.demo.race import Contender, spread
from draftrec.demo.story import PROBE_BUDGET, Story
from draftrec.evaluate.report import (
    Arm,
    Curve,
    Example,
    Report,
    Version,
    differing,
    machine_facts,
)

LABELS = {"baseline": "Baseline", "strict": "Strict", "relaxed": "Relaxed"}
_EXAMPLES = 3


def make_report(story: Story, folder: Path) -> Report:
    """The page about a story whose files lie in `folder`."""
    arms = make_arms(story)
    return Report(
        title="The same texts, written three ways",
        lead=(
            f"{len(story.requests)} readers the model has not seen, one text each, by the same "
            "model on the same machine: plain decoding, strict verification, relaxed verification."
        ),
        findings=tuple(findings(story, arms)),
        arms=tuple(arms),
        examples=tuple(make_examples(story)),
        cost=_cost(story),
        pool_growth=_growth(story),
        pool_growth_note=f"Counted with {PROBE_BUDGET} draft tokens per call.",
        next_steps=tuple(next_steps(story, folder)),
        facts={"Settings": settings(story), "Machine": machine_facts()},
    )


def make_arms(story: Story) -> list[Arm]:
    """The contenders as the report shows them."""
    base = story.contenders[0]
    return [_arm(one, base, tone) for tone, one in enumerate(story.contenders)]


def findings(story: Story, arms: Seq[Arm]) -> list[str]:
    """What the numbers mean, in sentences."""
    baseline, strict, relaxed = arms
    first, last = story.growth[0], story.growth[-1]
    return [
        _strict_finding(strict),
        f"Relaxed was {_times(relaxed)} as fast. {100 * relaxed.relaxed_share:.1f} % of its tokens "
        "were not the model's own first choice but close to it, and the words after them follow "
        f"suit: {relaxed.identical} of {relaxed.texts} texts came out like the baseline's.",
        f"Each forward pass wrote {strict.tokens_per_call:.1f} tokens in strict and "
        f"{relaxed.tokens_per_call:.1f} in relaxed mode instead of "
        f"{baseline.tokens_per_call:.1f}: texts about similar readers share phrases, so texts "
        "written before foretell the next tokens and the model only has to check them.",
        "Drafts get better as the pool grows: from a reader's own prompt and text alone strict "
        f"wrote {first.tokens_per_call['strict']:.1f} tokens per call, with {last.texts} texts in "
        f"the pool {last.tokens_per_call['strict']:.1f} ({PROBE_BUDGET} draft tokens per call).",
        "This model is tiny and its texts are more alike than those of a large model. Here much of "
        "the time goes into the work around each pass; with a large model the pass itself "
        "dominates, so the speedup comes closer to the tokens per call. Measure your own.",
    ]


def _strict_finding(strict: Arm) -> str:
    if strict.identical == strict.texts:
        return (
            f"Strict wrote all {strict.texts} texts exactly as the baseline did, token for token, "
            f"and was {_times(strict)} as fast."
        )
    return (
        f"Strict was {_times(strict)} as fast, but only {strict.identical} of {strict.texts} texts "
        "equal the baseline's; please report this."
    )


def _times(arm: Arm) -> str:
    assert arm.speedup
    return f"{arm.speedup.median:.2f} times"


def next_steps(story: Story, folder: Path) -> list[tuple[str, str]]:
    """Commands to go on with, and what they are for. The first runs as it stands."""
    readers, pool = shlex.quote(str(folder / "readers.jsonl")), shlex.quote(str(folder / "pool"))
    run, model = shlex.quote(str(folder / "run")), shlex.quote(str(story.plan.model))
    return [
        (
            f"draftrec generate {readers} --model {model} --pool {pool} --output {run}",
            "Write these readers' texts again, as a job that can be resumed:",
        ),
        (
            "draftrec generate users.jsonl --model path/or/hub-id --template kar --side user "
            "--output run",
            "Write knowledge about your own users with your own model:",
        ),
        (
            "draftrec generate users.jsonl --model path/or/hub-id --template kar --side user "
            "--accept relaxed --output run-relaxed",
            "The same in relaxed mode, to compare speed and texts:",
        ),
    ]


def make_examples(story: Story) -> list[Example]:
    """A few texts by all contenders, the relaxed one among them changed if any is."""
    base, *others = story.contenders
    relaxed = others[-1]
    changed = [
        i
        for i, (a, b) in enumerate(zip(base.texts, relaxed.texts, strict=True))
        if a.token_ids.tolist() != b.token_ids.tolist()
    ]
    same = [i for i in range(len(base.texts)) if i not in changed]
    chosen = sorted([*changed, *same][:_EXAMPLES])
    return [
        Example(
            f"Reader {story.requests[i].entity_id}",
            story.prompts[i],
            tuple(_version(one, base, i, tone) for tone, one in enumerate(story.contenders)),
        )
        for i in chosen
    ]


def settings(story: Story) -> dict[str, str]:
    """How the texts were written."""
    strict, plan = story.contenders[1].generator, story.plan
    config = strict.config
    rule = story.contenders[2].generator.config.accept
    return {
        "model": f"embedded, {_parameters(strict):.1f} million parameters",
        "device and dtype": f"{strict.device}, {strict.dtype}, one thread",
        "decoding": "greedy, one text at a time",
        "held-out prompts": f"{plan.held_out}, template {plan.template}, users",
        "pool": f"{len(story.pool)} texts, {story.pool.tokens:,} tokens, "
        f"{len(story.pool.groups)} groups",
        "budget and depth": f"{config.draft.budget} nodes, {config.draft.depth} tokens",
        "relaxed": f"among the top {rule.top_k}, at least {rule.min_prob:g} likely",
        "longest text": f"{plan.max_new_tokens} tokens",
        "repeats": f"{len(story.contenders[0].repeats)}, interleaved",
        "seed": str(plan.seed),
    }


def to_json(story: Story, report: Report) -> dict[str, Any]:
    """The content of `summary.json`."""
    strict = story.contenders[1].generator
    return {
        "seed": story.plan.seed,
        "model": "demo-lm",
        "device": strict.device,
        "dtype": strict.dtype,
        "threads": 1,
        "batch_size": 1,
        "repeats": len(story.contenders[0].repeats),
        "texts": len(story.requests),
        "wall_seconds": story.seconds,
        "warm_seconds": story.warm_seconds,
        "pool": {
            "texts": len(story.pool),
            "tokens": story.pool.tokens,
            "groups": len(story.pool.groups),
        },
        "arms": {
            one.name: _arm_json(arm, one)
            for arm, one in zip(report.arms, story.contenders, strict=True)
        },
        "pool_growth": [asdict(point) for point in story.growth],
        "cost_curve": strict.cost_state,
        "written": [
            {
                "entity_id": story.requests[i].entity_id,
                **{c.name: c.generator.decode(c.texts[i].token_ids) for c in story.contenders},
            }
            for i in range(len(story.requests))
        ],
        "findings": list(report.findings),
        "machine": machine_facts(),
    }


def _arm(one: Contender, base: Contender, tone: int) -> Arm:
    relaxed, new = one.total("relaxed_tokens"), one.new_tokens
    timing = one.generator.timing
    return Arm(
        name=one.name,
        label=LABELS[one.name],
        texts=len(base.texts),
        identical=one.identical_to(base),
        new_tokens=new,
        tokens_per_call=_ratio(new, one.total("target_calls")),
        mean_accepted_tokens=_ratio(one.total("accepted_tokens"), one.total("draft_calls")),
        acceptance_rate=_ratio(one.total("accepted_tokens"), one.total("drafted_tokens")),
        relaxed_share=_ratio(relaxed, new),
        seconds=spread(one.seconds),
        tokens_per_second=_ratio(new, sum(one.seconds)),
        draft_share=_ratio(timing.draft_seconds, sum(one.seconds)) if one is not base else 0.0,
        speedup=one.speedup_over(base) if one is not base else None,
        accepted_per_call=_histogram(one),
        accepted_by_source=one.accepted_by_source,
        tone=tone,
    )


def _arm_json(arm: Arm, one: Contender) -> dict[str, Any]:
    timing = one.generator.timing
    values = asdict(arm)
    for name in ("label", "tone", "seconds", "speedup", "accepted_by_source"):
        del values[name]
    return values | {
        "target_calls": one.total("target_calls"),
        "drafted_tokens": one.total("drafted_tokens"),
        "accepted_tokens": one.total("accepted_tokens"),
        "relaxed_tokens": one.total("relaxed_tokens"),
        "accepted_by_source": dict(zip(SOURCES, arm.accepted_by_source, strict=True)),
        "wall_seconds": one.seconds,
        "walltime_speedup": asdict(arm.speedup) if arm.speedup else None,
        "draft_seconds": timing.draft_seconds,
        "verify_seconds": timing.verify_seconds,
        "prefill_seconds": timing.prefill_seconds,
    }


def _version(one: Contender, base: Contender, i: int, tone: int) -> Version:
    text, model = one.texts[i], base.texts[i]
    calls, tokens = text.counts.target_calls, len(text.token_ids)
    note = f"{tokens} tokens in {calls} calls"
    if one is not base:
        same = text.token_ids.tolist() == model.token_ids.tolist()
        note += ", identical" if same else f", {text.counts.relaxed_tokens} relaxed"
    pieces = differing(_ids(model), _ids(text), _decoder(one))
    if pieces:  # many texts begin with a space, which would only look like a slip
        pieces = (replace(pieces[0], text=pieces[0].text.lstrip()), *pieces[1:])
    return Version(LABELS[one.name], pieces, note, tone)


def _ids(text: Generation) -> list[int]:
    return [int(i) for i in text.token_ids]


def _decoder(one: Contender) -> Callable[[Seq[int]], str]:
    tokenizer = one.generator.tokenizer
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True)


def _histogram(one: Contender) -> tuple[int, ...]:
    counts = one.accepted_per_call
    return tuple(counts[i] for i in range(max(counts, default=-1) + 1))


def _cost(story: Story) -> Curve | None:
    state: dict[str, Any] = story.contenders[1].generator.cost_state or {}
    if "rows" not in state:
        return None
    return Curve("pass", tuple(state["rows"]), tuple(1000 * s for s in state["seconds"]))


def _growth(story: Story) -> tuple[Curve, ...]:
    sizes = tuple(float(point.texts) for point in story.growth)
    return tuple(
        Curve(LABELS[name], sizes, tuple(p.tokens_per_call[name] for p in story.growth), tone)
        for name, tone in (("strict", 1), ("relaxed", 2))
    )


def _parameters(generator: Any) -> float:
    return sum(p.numel() for p in generator.target.model.parameters()) / 1e6


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
