"""What a trained draft head is worth beside a pool, on a real model's own texts.

    python benchmarks/drafter.py prepare --model DIR --side item --work WORK [--texts 1000]
    python benchmarks/drafter.py fit     --model DIR --side item --work WORK --texts 250 500 1000
    python benchmarks/drafter.py measure --model DIR --side item --work WORK --texts 250 500 1000
    python benchmarks/drafter.py plan

`prepare` writes records of MovieLens-1M, sets `--aside` entities aside that neither a pool nor
a head ever sees, and lets the model write texts of the others; interrupted, it goes on. With
`--profiles` the prompts are those that the small model was made for, the held-out ones aside. `fit`
trains a head on the first so many of these texts each. `measure` writes the reported entities'
texts plainly, with a pool of as many texts, with pool and head, and with the head and their own
words alone, in turn. `plan` counts what a head's levels and a large target read, from their shapes
alone. The last line is the result.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from common import SHARED, in_turn, note, paired_ratio, spread, write_result
from first_job import kar_requests, run_command

from draftrec.config import Side, make_config
from draftrec.core import SOURCES, Generation, Request
from draftrec.engine.learned.head import DraftHead, HeadShape
from draftrec.jobs.knowledge.generator import Generator
from draftrec.models.drafters import describe_drafter
from draftrec.pool.store import Pool

_SEEN = SHARED / "data/interactions/ml1m_gear.parquet"
_MOVIES = SHARED / "data/items/ml1m_movies.parquet"
_PROFILES = SHARED / "data/profiles.parquet"
#: Of the sides, among the profiles.
_TASKS = {"item": "gear_item", "user": "gear_user"}


@dataclass(frozen=True)
class Work:
    """Files of one side in the working folder; `written_at`: the temperature of the texts that are
    learnt from."""

    folder: Path
    side: Side
    written_at: float = 0.0

    @property
    def taught(self) -> Path:
        return self.folder / f"train-{self.side}s.jsonl"

    @property
    def reported(self) -> Path:
        return self.folder / f"test-{self.side}s.jsonl"

    @property
    def run(self) -> Path:
        return self.folder / f"run-{self.name}"

    @property
    def name(self) -> str:
        return f"{self.side}s" + (f"-at-{self.written_at}" if self.written_at else "")

    def head(self, texts: int) -> Path:
        return self.folder / f"head-{self.name}-{texts}"


def prepare(args: argparse.Namespace, work: Work) -> None:
    """Records of both parts, and the run of the first `max(--texts)`."""
    if args.profiles:
        _write_profiles(work, args.seed)
    elif not work.taught.is_file():
        everything = work.folder / f"{work.side}s.jsonl"
        run_command([
            "records", str(_SEEN), str(_MOVIES), f"--side={work.side}", f"--output={everything}",
            "--overwrite",
        ])  # fmt: skip
        lines = everything.read_text().splitlines(keepends=True)
        random.Random(args.seed).shuffle(lines)
        work.reported.write_text("".join(lines[: args.aside]))
        work.taught.write_text("".join(lines[args.aside :]))
    job = [
        "generate", str(work.taught), f"--model={args.model}", f"--output={work.run}",
        f"--repetition-penalty={args.penalty}", f"--max-new-tokens={args.max_new_tokens}",
        f"--limit={max(args.texts)}", "--shard-size=64", "--threads=1",
        f"--temperature={work.written_at}",
    ]  # fmt: skip
    job += [] if args.profiles else ["--template=kar", f"--side={work.side}"]
    note(json.dumps(run_command(job)))


def _write_profiles(work: Work, seed: int) -> None:
    rows = pq.read_table(_PROFILES, filters=[("task", "=", _TASKS[work.side])]).to_pylist()
    random.Random(seed).shuffle(rows)
    for split, path in (("train", work.taught), ("heldout", work.reported)):
        kept = ({k: r[k] for k in ("entity_id", "prompt")} for r in rows if r["split"] == split)
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


def fit(args: argparse.Namespace, work: Work) -> None:
    """A head for every number of texts."""
    for texts in args.texts:
        job = [
            "drafter", "fit", str(work.run), f"--model={args.model}",
            f"--output={work.head(texts)}", f"--limit={texts}", *shlex.split(args.fit),
        ]  # fmt: skip
        note(json.dumps(run_command(job)))


def requests_of(generator: Generator, work: Work, count: int) -> list[Request]:
    """Prompts of the reported entities as a job sends them."""
    rows = [json.loads(line) for line in work.reported.read_text().splitlines()[:count]]
    if "prompt" not in rows[0]:
        return kar_requests(generator, rows, work.side)
    ids = generator.encode([r["prompt"] for r in rows], chat=generator.has_chat_template)
    pairs = enumerate(zip(rows, ids, strict=True))
    return [Request(str(row["entity_id"]), x, key=i) for i, (row, x) in pairs]


def written_of(run: Path, count: int) -> list[tuple[Any, str | None]]:
    """The first texts of a run, with their groups."""
    found: list[tuple[Any, str | None]] = []
    for part in sorted(run.glob("part-*.parquet")):
        table = pq.read_table(part, columns=["token_ids"])
        found += [(ids.values.to_numpy(), None) for ids in table["token_ids"]]
        if len(found) >= count:
            break
    if len(found) < count:
        raise SystemExit(f"{run} has {len(found)} texts, {count} are wanted; run prepare longer")
    return found[:count]


class Ways:
    """The ways to write the same texts: `plain`, and by number of texts `pool-N`, `both-N`,
    `head-N`. `done`: the latest texts of each."""

    def __init__(self, args: argparse.Namespace, work: Work) -> None:
        self.args, self.work = args, work
        common: dict[str, Any] = {"dtype": args.dtype} if args.dtype else {}
        self.bare = Generator.from_pretrained(args.model, **common)
        self.headed = {
            n: Generator.from_pretrained(args.model, drafter=str(work.head(n)), **common)
            for n in args.texts
        }
        self.pools = {n: self._pool(n) for n in args.texts}
        self.done: dict[str, list[Generation]] = {}

    def _pool(self, count: int) -> Pool:
        pool = Pool(self.bare.fingerprint["tokenizer"])
        pool.add(written_of(self.work.run, count))
        return pool

    def writer(self, way: str, batch: int, temperature: float, budget: str) -> Generator:
        """A generator that writes this way."""
        kind, _, number = way.partition("-")
        settings: dict[str, Any] = {"draft": {"plain": "none", "head": "prompt"}.get(kind, "pool")}
        if self.args.dtype:
            settings["dtype"] = self.args.dtype
        config = make_config(
            str(self.args.model), batch_size=batch, temperature=temperature, seed=self.args.seed,
            repetition_penalty=self.args.penalty, max_new_tokens=self.args.max_new_tokens,
            budget=budget if budget == "auto" else int(budget), **settings,
        )  # fmt: skip
        base = self.headed[int(number)] if kind in ("both", "head") else self.bare
        pool = self.pools[int(number)] if settings["draft"] == "pool" else None
        return base.with_config(config, pool=pool)

    def run(self, way: str, writer: Generator, requests: Seq[Request]) -> float:
        """Write, keep what was written, and give the seconds."""
        start = time.perf_counter()
        done = writer.run(requests)
        seconds = time.perf_counter() - start
        self.done.setdefault(way, []).extend(done)
        return seconds


def _told(texts: Seq[Generation], plain: Seq[Generation]) -> dict[str, Any]:
    """Tokens per call, where drafts came from, and how many texts are plain decoding's."""
    tokens = sum(len(g.token_ids) for g in texts)
    calls = sum(g.counts.target_calls for g in texts)
    from_source = [sum(g.counts.accepted_by_source[i] for g in texts) for i in range(len(SOURCES))]
    same = [a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(texts, plain, strict=True)]
    return {
        "tokens_per_call": round(tokens / calls, 4),
        "tokens": tokens,
        "share_of_tokens": {
            name: round(n / tokens, 4) for name, n in zip(SOURCES, from_source, strict=True) if n
        },
        "identical_to_plain": sum(same),
        "texts": len(same),
    }


def measure(
    ways: Ways, batch: int, temperature: float, names: Seq[str], budget: str
) -> dict[str, Any]:
    """Every way over the same prompts, in turn, slice by slice."""
    args = ways.args
    requests = requests_of(ways.bare, ways.work, args.reported)
    size = -(-len(requests) // args.rounds)
    slices = [requests[i : i + size] for i in range(0, len(requests), size)]
    writers = {way: ways.writer(way, batch, temperature, budget) for way in names}
    for writer in writers.values():  # measures what passes cost, and compiles
        writer.run(requests[: min(2, batch)])
    ways.done.clear()
    seconds: dict[str, list[float]] = {way: [] for way in names}
    for number, part in enumerate(slices):
        order = list(names[number % len(names) :]) + list(names[: number % len(names)])
        timed = in_turn({w: partial(ways.run, w, writers[w], part) for w in order}, 1)
        for way, found in timed.items():
            seconds[way] += found
        note(f"temperature {temperature}, batch {batch}, budget {budget}: {timed}")
    found = {way: _told(ways.done[way], ways.done["plain"]) for way in names}
    for way in names:
        kind, _, number = way.partition("-")
        pool = f"pool-{number}"
        if kind in ("both", "head") and pool in seconds:
            calls = found[way]["tokens_per_call"] / found[pool]["tokens_per_call"]
            found[way]["over_pool"] = {"tokens_per_call": round(calls, 4)}
        if args.untimed:
            continue
        found[way]["seconds"] = spread(seconds[way])
        found[way]["speedup_over_plain"] = paired_ratio(seconds["plain"], seconds[way])
        if "over_pool" in found[way]:
            found[way]["over_pool"]["speed"] = paired_ratio(seconds[pool], seconds[way])
    return found


def _measured(args: argparse.Namespace, work: Work) -> dict[str, Any]:
    ways = Ways(args, work)
    trained = {n: describe_drafter(work.head(n)) for n in args.texts}
    cells: dict[str, Any] = {}
    most = max(args.texts)
    for temperature in args.temperatures:
        for batch in args.batch:
            here = cells.setdefault(f"temperature {temperature}, batch {batch}", {})
            for budget in args.budgets:
                every = args.texts if budget != "auto" and batch == args.batch[0] else [most]
                names = ["plain", *(f"{kind}-{n}" for n in every for kind in ("pool", "both"))]
                if budget != "auto":
                    names.append(f"head-{most}")
                here[f"budget {budget}"] = measure(ways, batch, temperature, names, budget)
    return {"trained": trained, "cells": cells}


#: Published shapes: width, layers, heads, key heads, feed-forward width, vocabulary.
_LARGE = {
    "Llama-2-7B": (4096, 32, 32, 32, 11008, 32_000),
    "Llama-3.1-8B": (4096, 32, 32, 8, 14336, 128_256),
    "Qwen2.5-7B": (3584, 28, 28, 4, 18944, 152_064),
}


def plan(vocabulary: int, levels: int, bytes_per_weight: int = 2) -> dict[str, Any]:
    """Bytes that a step of the target reads, and a level of a head of its shape over `vocabulary`
    draft tokens; what share of plain steps `levels` of them take where memory is the limit. A head
    pays where it brings more tokens per call than that share of those that there are already."""
    found: dict[str, Any] = {}
    for name, (hidden, layers, heads, kv_heads, inner, words) in _LARGE.items():
        shape = HeadShape(hidden, heads, kv_heads, hidden // heads, inner)
        with torch.device("meta"):
            head = sum(p.numel() for p in DraftHead(shape).parameters())
        per_layer = hidden * hidden * 2 + 2 * hidden * shape.kv_heads * shape.head_dim
        target = layers * (per_layer + 3 * hidden * inner) + hidden * words
        level = head + vocabulary * hidden
        found[name] = {
            "target_bytes": target * bytes_per_weight,
            "level_bytes": level * bytes_per_weight,
            "share": round(levels * level / target, 4),
        }
    return {"vocabulary": vocabulary, "levels": levels, "models": found}


def main() -> None:
    """Parse, run; `measure` writes drafter-NAME.json to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("prepare", "fit", "measure", "plan"))
    parser.add_argument("--model", type=Path, help="folder of a real model")
    parser.add_argument("--work", type=Path, help="folder outside the repository")
    parser.add_argument("--side", choices=("item", "user"), default="item")
    parser.add_argument("--profiles", action="store_true", help="prompts of the small model")
    parser.add_argument("--texts", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--reported", type=int, default=24, help="texts that are reported")
    parser.add_argument("--aside", type=int, default=300, help="entities that are set aside")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--untimed", action="store_true", help="count alone; needs no quiet")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument(
        "--written-at",
        type=float,
        default=0.0,
        metavar="TEMPERATURE",
        help="of the texts that are learnt from; default: 0, greedy",
    )
    parser.add_argument("--budgets", nargs="+", default=["16", "auto"])
    parser.add_argument("--penalty", type=float, default=1.1, help="of repetitions")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dtype", help="as of `draftrec generate`")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result; default: MODEL-SIDE")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    parser.add_argument("--fit", default="", help="options of `drafter fit`, as one word")
    args = parser.parse_args()
    if args.part == "plan":
        write_result("drafter-plan", plan(vocabulary=8192, levels=4), folder=args.results)
        return
    if not args.model or not args.work:
        parser.error("--model and --work are needed")
    work = Work(args.work, args.side, args.written_at)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if args.part == "prepare":
        prepare(args, work)
    elif args.part == "fit":
        fit(args, work)
    else:
        kept = ("side", "profiles", "texts", "written_at", "reported", "batch", "temperatures",
                "budgets", "penalty", "max_new_tokens", "dtype", "threads", "rounds")  # fmt: skip
        settings = {name: getattr(args, name) for name in kept}
        payload = {"settings": settings, "model": args.model.name, **_measured(args, work)}
        name = args.name or f"{args.model.name}-{args.side}"
        write_result(f"drafter-{name}", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
