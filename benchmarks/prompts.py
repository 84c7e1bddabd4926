"""How many rows of prompts are computed, and what part of a job's processor time they take.

Rows are counted, not timed: prompts made by templates, texts of drawn lengths, a target that only
says which rows it is given; the same whenever it is run. Counted are the requests as they come in
(as in the service, and in jobs before), as a job takes them, and the least that any order could.
`--texts N` also has a model write N texts, drafted and plain in turn, by a clock of processor time.
The last line is the result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import note, spread, write_result
from replay import ReplayRule
from shop import stream_records

from draftrec.config import AcceptConfig
from draftrec.core import Request
from draftrec.data.templates import FRAMEWORKS, load_template
from draftrec.demo.shop import demo_model_path
from draftrec.engine.packing import Segment
from draftrec.engine.passes.eager import bucket
from draftrec.engine.target import Scores
from draftrec.engine.text import loop
from draftrec.engine.text.batch import shared_tokens
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.engine.text.stats import Timing
from draftrec.jobs.knowledge.prompts import samples_of
from draftrec.models import loading
from draftrec.models.prompting import PromptEncoder, PromptForm, has_chat_template

_QUESTIONS = (
    "Which of these would the user buy again, and why?",
    "Describe the user's taste in one paragraph.",
    "Name five themes that the user likes.",
    "What should never be recommended to this user?",
)


class CountedTarget:
    """A target that computes nothing and counts the rows it is given: `rows`, and `padded` to what
    oneDNN's layers would compute."""

    shared_length = anew_length = 1 << 30

    def __init__(self) -> None:
        self.slab = self
        self.rows = self.padded = 0

    def reserve(self, slots: int, capacity: int) -> None:
        """Nothing is kept."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Nothing was computed."""

    def commit(self, segments: Seq[Segment], paths: Seq[Any]) -> None:
        """Nothing to move."""

    def score(self, segments: Seq[Segment]) -> Scores:
        rows = sum(s.rows for s in segments)
        self.rows += rows
        self.padded += bucket(rows)
        scored = [i for i, s in enumerate(segments) if s.scored]
        return Scores(torch.zeros(len(scored), 2), scored)


def count(requests: Seq[Request], slots: int, seed: int, *, as_they_come: bool) -> dict[str, float]:
    """Prompt rows that a job without drafts computes for texts of 64 to 192 tokens, and the part of
    all rows that is padding."""
    lengths = np.random.default_rng(seed).integers(64, 193, len(requests))
    texts = {r.entity_id: np.ones(n, np.int32) for r, n in zip(requests, lengths, strict=True)}
    for text in texts.values():
        text[-1] = 0
    target = CountedTarget()
    engine = loop.Engine(
        target, NoDrafter(), ReplayRule(texts), FixedBudget(0), AcceptConfig(),  # type: ignore[arg-type]
        frozenset([0]), slots, 256,
    )  # fmt: skip
    if as_they_come:
        batch = loop.empty_batch(engine, max(len(r.prompt_ids) for r in requests))
        for request in requests:
            batch.add(request)
        while batch.active:
            loop.step(engine, batch)
    else:
        loop.generate(engine, requests)
    written = int(lengths.sum()) - len(requests)  # the first token needs no row of its own
    return {"rows": target.rows - written, "padding": round(1 - target.rows / target.padded, 4)}


def counted(prompts: Seq[Request], slots: int, seed: int) -> dict[str, Any]:
    """A workload's rows, as requests come and as a job takes them."""
    before = count(prompts, slots, seed, as_they_come=True)
    after = count(prompts, slots, seed, as_they_come=False)
    total = sum(len(r.prompt_ids) for r in prompts)
    return {
        "prompts": len(prompts),
        "rows": total,
        "computed_as_they_come": before["rows"],
        "computed": after["rows"],
        "computed_share": round(after["rows"] / total, 4),
        "least": total - shared_tokens([r.prompt_ids for r in prompts]),
        "padding": after["padding"],
    }


def workloads(tokenizer: Any, records: int, seed: int) -> Iterator[tuple[str, list[Request]]]:
    """Every built-in template on the bookshop's records; several texts of each record; several
    questions about each user, in any order; instructions first, and the same last."""
    form = PromptForm(chat=has_chat_template(tokenizer))
    encoder = PromptEncoder(tokenizer, form)
    users = list(islice(stream_records("user"), records))
    items = list(islice(stream_records("item"), records))

    def requests(prompts: Seq[str]) -> list[Request]:
        ids = encoder.encode(prompts)
        return [Request(str(i), x, key=i) for i, x in enumerate(ids)]

    for name in FRAMEWORKS:
        for side, rows in (("user", users), ("item", items)):
            template = load_template(name, side)  # type: ignore[arg-type]
            yield f"{name}_{side}", requests([template.render(r) for r in rows])
    told = [load_template("once", "user").render(r).rsplit("\n", 1)[0] for r in users]
    first = requests([load_template("kar", "user").render(r) for r in users[: records // 4]])
    four = [s for r in first for s in samples_of(r, 4)]
    yield "four_texts_each", [replace(r, entity_id=str(i)) for i, r in enumerate(four)]
    asked = [f"{t}\n{q}" for q in _QUESTIONS for t in told[: records // 4]]
    order = np.random.default_rng(seed).permutation(len(asked))
    yield "four_questions_each", requests([asked[i] for i in order])
    rules = " ".join(_QUESTIONS)
    yield "instructions_last", requests([f"{t}\n{rules}" for t in told])
    yield "instructions_first", requests([f"{rules}\n{t}" for t in told])


def shares(model: Path, texts: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Parts of a job's processor time: prompts, verifying, drafting; drafted and plain in turn."""
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.pool.store import Pool

    loaded = Generator.from_pretrained(model, max_new_tokens=tokens)
    template = load_template("kar", "user")
    prompts = [template.render(r) for r in islice(stream_records("user"), texts)]
    ids = loaded.encode(prompts, chat=loaded.has_chat_template)
    requests = [Request(str(i), x, key=i) for i, x in enumerate(ids)]
    found: dict[str, list[dict[str, float]]] = {"drafted": [], "plain": []}
    for turn in range(rounds + 1):  # the first one compiles and is not counted
        for way in ("drafted", "plain") if turn % 2 else ("plain", "drafted"):
            writer = loaded.with_settings(draft="none" if way == "plain" else "pool")
            writer.pool = Pool(loaded.fingerprint["tokenizer"])
            writer.timing = Timing(clock=time.process_time)
            start = time.process_time()
            writer.run(requests, on_text=lambda r, t, w=writer: w.commit([(t.token_ids, r.group)]))
            whole = time.process_time() - start
            spent = writer.timing.spent
            parts = {"prompts": spent.prefill, "verifying": spent.verify, "drafting": spent.draft}
            note(f"{way}: {whole:.1f} s, {parts}")
            if turn:
                found[way].append({"seconds": whole, **{n: s / whole for n, s in parts.items()}})
    return {
        "texts": texts,
        "max_new_tokens": tokens,
        "dtype": loaded.dtype,
        "threads": torch.get_num_threads(),
        **{
            way: {name: spread([run[name] for run in runs]) for name in runs[0]}
            for way, runs in found.items()
        },
    }


def main() -> None:
    """Parse, count, time if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=demo_model_path())
    parser.add_argument("--records", type=int, default=1024, help="of each workload")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=0, help="texts to write and time")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name, requests in workloads(loading.load_tokenizer(args.model), args.records, args.seed):
        found[name] = counted(requests, args.slots, args.seed)
        note(f"{name}: {json.dumps(found[name])}")
    result: dict[str, Any] = {"model": args.model.name, "slots": args.slots, "workloads": found}
    if args.texts:
        result["shares"] = shares(args.model, args.texts, args.max_new_tokens, args.rounds)
    write_result("prompts", result, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
