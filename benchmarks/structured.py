"""RLMRec's texts under the schema that comes with its template: are all valid, at what cost?

    PYTHONPATH=src python benchmarks/structured.py --model DIR [--users 100] [--items 100]

Invented readers and books, strict, drafted from the pool that grows with every batch. Every text
that ends is read with `json` and checked with `jsonschema`, a library that has no part in writing
it. A sample is written without drafts as well, for equality, and without the schema, to see how
many would have been valid. Steps with and without masks are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, interleave, note, paired_ratio, spread, write_result
from jsonschema import Draft202012Validator
from shop import stream_records

from draftrec.config import make_config
from draftrec.core import SOURCES, Generation, Request
from draftrec.data.templates import Side, load_template
from draftrec.engine.text import loop
from draftrec.engine.text.grammar import GrammarControl
from draftrec.evaluate.compare.grounding import TextForm
from draftrec.jobs.knowledge.generator import Generator

SIDES: tuple[Side, ...] = ("user", "item")


class Clock:
    """Seconds that masks take, and the rows that they are for; wraps `GrammarControl.apply`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.rows: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        apply = GrammarControl.apply

        def timed(control: GrammarControl, batch: Any, trees: Any, logits: Any) -> Any:
            begin = time.perf_counter()
            masked = apply(control, batch, trees, logits)
            self.seconds.append(time.perf_counter() - begin)
            self.rows.append(len(logits))
            return masked

        GrammarControl.apply = timed  # type: ignore[method-assign]
        try:
            yield
        finally:
            GrammarControl.apply = apply  # type: ignore[method-assign]

    def report(self, passes: float) -> dict[str, Any]:
        """Per step, per row, and as a share of the seconds that all passes took."""
        if not self.seconds:
            return {}
        per_row = [1e6 * s / n for s, n in zip(self.seconds, self.rows, strict=True)]
        return {
            "steps": len(self.seconds),
            "ms_per_step": spread([1e3 * s for s in self.seconds]),
            "us_per_row": spread(per_row),
            "share_of_verification": round(sum(self.seconds) / passes, 4),
        }


def configured(args: argparse.Namespace, **settings: Any) -> Any:
    return make_config(
        args.model, dtype=args.dtype, batch_size=args.batch, max_new_tokens=args.max_new_tokens,
        **settings,
    )  # fmt: skip


def requests_for(generator: Generator, side: Side, count: int, seed: int) -> list[Request]:
    template = load_template("rlmrec", side)
    prompts = [template.render(r) for r in islice(stream_records(side, seed=seed), count)]
    ids = generator.encode(prompts, chat=generator.has_chat_template)
    return [Request(f"{side}{i}", x, side, key=i) for i, x in enumerate(ids)]


def write_all(
    generator: Generator, requests: Seq[Request], batch: int, until: float
) -> list[Generation]:
    """Batch after batch, each drafting from those before it, until the clock says `until`."""
    done: list[Generation] = []
    for first in range(0, len(requests), 2 * batch):
        if time.perf_counter() > until:
            note(f"out of time after {len(done)} of {len(requests)} texts")
            break
        some = requests[first : first + 2 * batch]
        texts = generator.run(some)
        generator.commit([(g.token_ids, r.group) for g, r in zip(texts, some, strict=True)])
        done += texts
        note(f"{len(done)} of {len(requests)} texts")
    return done


def judge(generator: Generator, side: Side, done: Seq[Generation]) -> dict[str, Any]:
    """How many texts ended, and how many of these are valid; every fault is named."""
    validator = Draft202012Validator(json.loads(load_template("rlmrec", side).schema or "{}"))
    form = TextForm("rlmrec", side)
    ended = [generator.decode(g.token_ids) for g in done if g.finish_reason == "eos"]
    faults = Counter(fault for text in ended if (fault := _fault(text, validator)))
    return {
        "texts": len(done),
        "ended": len(ended),
        "cut": len(done) - len(ended),
        "valid_of_ended": len(ended) - sum(faults.values()),
        "faults": dict(faults),
        # The template's own limits, in words, of which the schema knows letters only.
        "beyond_the_prompt": dict(Counter(f for text in ended for f in form.faults(text))),
        "tokens_per_text": spread([float(len(g.token_ids)) for g in done]),
    }


def _fault(text: str, validator: Any) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return "not JSON"
    error = next(iter(validator.iter_errors(value)), None)
    return None if error is None else f"{error.validator} at {error.json_path}"


def counted(done: Seq[Generation]) -> dict[str, Any]:
    """Calls, and the share of all tokens by the source of their draft."""
    tokens = sum(len(g.token_ids) for g in done)
    sources = np.sum([g.counts.accepted_by_source for g in done], 0).tolist()
    return {
        "new_tokens": tokens,
        "tokens_per_call": round(tokens / sum(g.counts.target_calls for g in done), 4),
        "share_by_source": {n: round(c / tokens, 4) for n, c in zip(SOURCES, sources, strict=True)},
    }


def one_side(
    base: Generator, args: argparse.Namespace, side: Side, clock: Clock, until: float
) -> dict[str, Any]:
    schema = load_template("rlmrec", side).schema
    strict = base.with_config(configured(args, json_schema=schema))
    requests = requests_for(base, side, args.users if side == "user" else args.items, args.seed)
    clock.seconds.clear()
    clock.rows.clear()
    begin, before = time.perf_counter(), strict.timing.verify_seconds
    done = write_all(strict, requests, args.batch, until)
    seconds = time.perf_counter() - begin
    found = {**judge(strict, side, done), **counted(done), "seconds": round(seconds, 2)}
    found["masks"] = clock.report(strict.timing.verify_seconds - before)
    sample = requests[: min(args.sample, len(done))]
    plain = base.with_config(configured(args, json_schema=schema, draft="none")).run(sample)
    equal = [
        a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(plain, done, strict=False)
    ]
    free = base.with_config(configured(args, draft="none")).run(sample)
    found["sample"] = {
        "texts": len(sample),
        "equal_to_plain": sum(equal),
        "without_the_schema": judge(base, side, free),
    }
    return found


def short_run(
    base: Generator, args: argparse.Namespace, requests: Seq[Request], schema: str | None
) -> Callable[[], int]:
    """Writes the first `--steps` tokens without drafts; gives back how many steps that took."""
    settings = configured(args, draft="none", json_schema=schema)
    batch = settings.batch.model_copy(update={"max_new_tokens": args.steps})
    generator = base.with_config(settings.model_copy(update={"batch": batch}))

    def run() -> int:
        passes: list[loop.StepStats] = []
        generator.run(requests, on_step=passes.append)
        return len(passes)

    return run


def steps(base: Generator, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of plain decoding with and without masks, in turns, by batch size."""
    schema = load_template("rlmrec", "user").schema
    found: dict[str, Any] = {}
    for batch in sorted({1, args.batch}):
        requests = requests_for(base, "user", batch, args.seed)
        runs = {
            n: short_run(base, args, requests, s) for n, s in {"off": None, "on": schema}.items()
        }
        counts = {name: run() for name, run in runs.items()}
        seconds = interleave(runs, args.rounds)
        per_step = {name: [s / counts[name] for s in seconds[name]] for name in runs}
        found[str(batch)] = {
            **{f"ms_{name}": spread([1e3 * s for s in per_step[name]]) for name in runs},
            "ratio": paired_ratio(per_step["on"], per_step["off"]),
        }
    return found


def main(arguments: Seq[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=700)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sample", type=int, default=4, help="per side, also without drafts")
    parser.add_argument("--steps", type=int, default=32, help="tokens per text that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no batch after that")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    until = time.perf_counter() + 60 * args.minutes
    base = Generator.from_pretrained(config=configured(args, draft="none"))
    timed = steps(base, args)
    clock = Clock()
    with clock.watching():
        sides = {side: one_side(base, args, side, clock, until) for side in SIDES}
    names = ("batch", "max_new_tokens", "sample", "steps", "rounds")
    payload = {
        "model": Path(args.model).name,
        "device": base.device,
        "dtype": base.dtype,
        "template": "rlmrec",
        "settings": {name: getattr(args, name) for name in names},
        "texts": sum(s["texts"] for s in sides.values()),
        "ended": sum(s["ended"] for s in sides.values()),
        "valid_of_ended": sum(s["valid_of_ended"] for s in sides.values()),
        "sides": sides,
        "step": timed,
    }
    write_result("structured", payload, seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
