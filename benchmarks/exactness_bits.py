"""Parts of exactness.py, `bits` and `bits-cost`: with --exact, are texts plain decoding's bit for
bit, whatever is drafted and whatever else is in the batch, and what does that cost?

Every text is compared, token by token, with the one that the same model writes alone, one prompt at
a time and without drafts: strict at several batch sizes and budgets, beside other texts, relaxed
with the drafts removed, plain in batches. The same without --exact says what it is for. The times
are of the same prompts written in turn, with --exact and without, plain and strict.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import interleave, note, paired_ratio, spread
from first_job import kar_requests

from draftrec.config import make_config
from draftrec.core import Generation, Request
from draftrec.demo.shop import demo_model_path, readers
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool

Texts = dict[str, list[int]]
#: Readers whose texts are drafted from, and those written about beside the others.
_WARM, _STRANGERS = 64, 32


def measure_bits(args: argparse.Namespace, *, cost: bool) -> dict[str, Any]:
    """Every model in every dtype; the payload. `cost`: of the times, else of the texts."""
    folders, measure = args.model or [demo_model_path()], _costs if cost else _texts_of
    return {
        "prompts": args.timed if cost else args.limit,
        "max_new_tokens": args.max_new_tokens,
        "settings": dict(args.settings),
        "models": {
            folder.name: {
                dtype: measure(*_loaded(folder, dtype, args), args) for dtype in args.dtype
            }
            for folder in folders
        },
    }


def _loaded(
    folder: Path, dtype: str, args: argparse.Namespace
) -> tuple[dict[bool, Generator], Pool, list[Request], list[Request]]:
    """The model with `exact` and without; a pool of texts, what is to be written, and what may be
    beside it."""
    common = {"dtype": dtype, "device": args.device, "max_new_tokens": args.max_new_tokens}
    both = {
        exact: Generator.from_pretrained(
            folder, **common, **dict(args.settings), exact=exact, draft="none", batch_size=1
        )
        for exact in (True, False)
    }
    asked = _requests(both[True], args.limit + _WARM + _STRANGERS)
    requests, others = asked[: args.limit], asked[args.limit :]
    pool = Pool(both[True].fingerprint["tokenizer"])
    warm = _with(both[True], None, draft="none", batch_size=16).run(others[:_WARM])
    pool.add((g.token_ids, r.group) for g, r in zip(warm, others, strict=False))
    return both, pool, requests, others[_WARM:]


def _texts_of(
    both: dict[bool, Generator],
    pool: Pool,
    requests: list[Request],
    strangers: list[Request],
    args: argparse.Namespace,
) -> dict[str, Any]:
    unasked = both[False].exact
    report: dict[str, Any] = {
        "promised": both[True].exact, "unasked": unasked, "exact": {}, "ordinary": {},
    }  # fmt: skip
    for exact, generator in both.items():
        expected = _texts(generator.run(requests))
        found = report["exact" if exact else "ordinary"]
        for name, settings, beside in _runs(args, exact=exact):
            made = _with(generator, pool, **settings)
            done = made.run(_mixed(requests, strangers) if beside else requests)
            found[name] = _compared(requests, expected, done)
            way = f"{generator.dtype} {'exact' if exact else 'ordinary'}, {name}"
            note(f"{way}: {found[name]['equal']} of {len(requests)}")
    return report


def _requests(generator: Generator, count: int) -> list[Request]:
    """The embedded shop's readers, asked about as KAR does."""
    records = readers()
    if count > len(records):
        raise SystemExit(f"the shop has {len(records)} readers; ask for fewer prompts")
    return kar_requests(generator, records[:count], "user")


def _with(generator: Generator, pool: Pool | None, **settings: Any) -> Generator:
    """The same weights under other settings."""
    before = generator.config
    config = make_config(
        before.target.model,
        dtype=before.target.dtype,
        device=before.target.device,
        exact=before.target.exact,
        max_new_tokens=before.batch.max_new_tokens,
        **settings,
    )
    return generator.with_config(config, pool=pool if settings["draft"] == "pool" else None)


def _runs(args: argparse.Namespace, *, exact: bool) -> list[tuple[str, dict[str, Any], bool]]:
    """Name, settings, and whether other texts are written among those compared."""
    runs: list[tuple[str, dict[str, Any], bool]] = []
    strict: dict[str, Any] = {"draft": "pool", "accept": "strict"}
    for batch in args.batch:
        here = {"batch_size": batch}
        if batch > 1:
            runs.append((f"plain, batch {batch}", {"draft": "none", **here}, False))
        for budget in args.budget if exact else args.budget[-1:]:
            runs.append(
                (f"strict {budget}, batch {batch}", {**strict, **_of(budget), **here}, False)
            )
        if exact:
            removed = {"draft": "none", "accept": "relaxed"}
            runs.append((f"relaxed without drafts, batch {batch}", {**removed, **here}, False))
    batch = max(args.batch)
    if exact and batch > 1:
        last = {**strict, **_of(args.budget[-1]), "batch_size": batch}
        runs.append((f"strict {args.budget[-1]} beside other texts, batch {batch}", last, True))
    return runs


def _of(budget: str) -> dict[str, Any]:
    return {"budget": budget if budget == "auto" else int(budget)}


def _mixed(requests: list[Request], strangers: list[Request]) -> list[Request]:
    """Strangers spread among the requests."""
    step = max(1, len(requests) // max(1, len(strangers)))
    mixed: list[Request] = []
    for i, request in enumerate(requests):
        if i % step == 0 and i // step < len(strangers):
            mixed.append(strangers[i // step])
        mixed.append(request)
    return mixed


def _texts(done: list[Generation]) -> Texts:
    return {g.entity_id: g.token_ids.tolist() for g in done}


def _compared(requests: list[Request], expected: Texts, done: list[Generation]) -> dict[str, Any]:
    found = _texts(done)
    mine = {r.entity_id for r in requests}
    calls = sum(g.counts.target_calls for g in done if g.entity_id in mine)
    tokens = sum(len(found[name]) for name in mine)
    return {
        "texts": len(requests),
        "equal": sum(found[name] == expected[name] for name in mine),
        "tokens_per_call": round(tokens / calls, 3),
        "accepted_tokens": sum(g.counts.accepted_tokens for g in done if g.entity_id in mine),
    }


def _costs(
    both: dict[bool, Generator],
    pool: Pool,
    requests: list[Request],
    _strangers: list[Request],
    args: argparse.Namespace,
) -> dict[str, Any]:
    return {
        f"batch_{batch}": _cost(both, pool, requests, batch, args)
        for batch in sorted({min(args.batch), max(args.batch)})
    }


def _cost(
    both: dict[bool, Generator],
    pool: Pool,
    requests: list[Request],
    batch: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds of the same prompts in turn: exact over ordinary, plain and strict."""
    part = requests[: max(args.timed, batch)]
    ways = {
        "plain": {"draft": "none"},
        "strict": {"draft": "pool", "accept": "strict", **_of(args.budget[-1])},
    }
    variants: dict[str, Callable[[], list[Generation]]] = {}
    written: dict[str, int] = {}
    for way, settings in ways.items():
        for exact, generator in both.items():
            made = _with(generator, pool, **settings, batch_size=batch)
            name = f"{'exact' if exact else 'ordinary'} {way}"
            variants[name] = lambda made=made: made.run(part)
            written[name] = sum(len(g.token_ids) for g in variants[name]())  # and warms it up
    seconds = interleave(variants, args.rounds)
    return {
        "texts": len(part),
        "ms_per_token": {
            name: spread([1e3 * s / written[name] for s in found])
            for name, found in seconds.items()
        },
        "exact_over_ordinary": {
            way: paired_ratio(seconds[f"exact {way}"], seconds[f"ordinary {way}"]) for way in ways
        },
    }


def all_equal(payload: dict[str, Any]) -> bool:
    """Whether every text that --exact promised is equal."""
    runs = [
        run
        for dtypes in payload["models"].values()
        for found in dtypes.values()
        if found["promised"]
        for run in found["exact"].values()
    ]
    return all(run["equal"] == run["texts"] for run in runs)
