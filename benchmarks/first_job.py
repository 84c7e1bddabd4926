"""What a first job gets: default settings, own records, drafted and plain side by side.

Two parts. `bookshop`: the README's command, as a child process, on 400 invented readers and the
embedded model, in turn with `--draft none`. `movielens`: every user of MovieLens-100K and a real
instruct model; records by `draftrec records`, prompts by the kar template, all settings at their
defaults. There the pool grows over all users, chunk by chunk; every few chunks the same prompts are
also written plainly, before or after in turn, so that both meet the same machine. Both parts run
with and without a repetition penalty. Processors with matrix tiles have result files of their own,
as other drafts pay there. The last line is the result.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import SHARED, note, paired_ratio, spread, write_result
from jobs import environment, program, token_ids_of
from shop import stream_records

from draftrec.config import Side
from draftrec.data.templates import load_template
from draftrec.demo.shop import demo_model_path
from draftrec.engine.passes.row_products import has_tiles

if TYPE_CHECKING:
    from draftrec.core import Generation, Request
    from draftrec.engine.costs import CostCurve
    from draftrec.engine.text.stats import Spent, StepStats
    from draftrec.jobs.knowledge.generator import Generator

_RATINGS = SHARED / "data/interactions/ml100k_ratings.parquet"
_MOVIES = SHARED / "data/items/ml100k_movies.parquet"
_COLUMNS = ("--user-column", "user", "--item-column", "movie", "--time-column", "ts")
#: What a job of the command line says of itself that is worth keeping here.
_KEPT = (
    "entities", "new_tokens", "target_calls", "tokens_per_call", "acceptance_rate", "pool_share",
    "accepted_by_source", "times_plain", "times_plain_kind", "cut_texts", "empty_texts", "chat",
    "threads", "exact", "device", "dtype", "wall_seconds",
)  # fmt: skip


def bookshop(args: argparse.Namespace, scratch: Path, penalty: float) -> dict[str, Any]:
    """The README's command, drafted and plain in turn; whole processes and the jobs' own clocks."""
    records = scratch / "users.jsonl"
    with records.open("w", encoding="utf-8") as file:
        for record in islice(stream_records("user"), args.records):
            file.write(json.dumps(record) + "\n")
    model = demo_model_path()
    extra = [] if penalty == 1.0 else [f"--repetition-penalty={penalty}"]
    summaries: dict[str, list[dict[str, Any]]] = {"drafted": [], "plain": []}
    processes: dict[str, list[float]] = {"drafted": [], "plain": []}
    texts: dict[str, Any] = {}
    for turn in range(args.rounds + 1):  # the first one compiles and is not counted
        ways = ["drafted", "plain"] if turn % 2 else ["plain", "drafted"]
        for way in ways:
            output = scratch / f"{way}-{penalty}-{turn}"
            draft = ["--draft=none"] if way == "plain" else []
            job = ["generate", str(records), "--model", str(model), "--output", str(output)]
            start = time.perf_counter()
            summary = run_command([*job, "--template=kar", "--side=user", *extra, *draft])
            seconds = time.perf_counter() - start
            note(f"bookshop {way} {summary['wall_seconds']:.1f} s")
            if turn:
                summaries[way].append(summary)
                processes[way].append(seconds)
            texts[way] = token_ids_of(output)
    walls = {way: [s["wall_seconds"] for s in found] for way, found in summaries.items()}
    return {
        "records": args.records,
        "identical_texts": texts["drafted"] == texts["plain"],
        "wall_speedup": paired_ratio(walls["plain"], walls["drafted"]),
        "process_speedup": paired_ratio(processes["plain"], processes["drafted"]),
        "drafted": {k: summaries["drafted"][-1].get(k) for k in _KEPT},
        "times_plain_said": spread([s["times_plain"] for s in summaries["drafted"]]),
        "generation_settings": {"repetition_penalty": penalty},
    }


def run_command(arguments: Seq[str]) -> dict[str, Any]:
    """Run `draftrec` and read the summary on the last line of its output."""
    done = subprocess.run(
        program(*arguments, "--json"), check=True, env=environment(), capture_output=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def movielens(args: argparse.Namespace, generator: Generator, penalty: float) -> dict[str, Any]:
    """All users with the generator's default settings, every few chunks also without drafts."""
    from draftrec.config import make_config
    from draftrec.core import SOURCES
    from draftrec.engine.text.stats import Spent
    from draftrec.pool.store import Pool

    settings: dict[str, Any] = {} if penalty == 1.0 else {"repetition_penalty": penalty}
    ours = make_config(str(args.model), **settings)
    drafting = generator.with_config(ours, pool=Pool(generator.fingerprint["tokenizer"]))
    plain = generator.with_config(make_config(str(args.model), draft="none", **settings))
    requests = _requests(generator, args.users)
    for writer in (drafting, plain):  # measures what passes cost, and compiles
        writer.run(requests[:1])
    rounds: list[dict[str, float]] = []
    written: list[Generation] = []
    seconds = 0.0
    curve = drafting.cost_curve(max(len(r.prompt_ids) for r in requests))
    told = Spent()  # what a job's summary would be made of
    for number, chunk in enumerate(_chunks(requests, args.chunk)):
        compared = number % args.plain_every == 0
        times: dict[str, float] = {}
        ids: dict[str, list[list[int]]] = {}
        ways = ["drafted", "plain"] if number % (2 * args.plain_every) else ["plain", "drafted"]
        for way in ways if compared else ["drafted"]:
            start = time.perf_counter()
            if way == "plain":
                done = plain.run(chunk)
            else:
                done, spent = _write(drafting, chunk, curve)
                told += spent
            times[way] = time.perf_counter() - start
            ids[way] = [g.token_ids.tolist() for g in done]
            if way == "drafted":
                written += done
        seconds += times["drafted"]
        if compared:
            equal = sum(a == b for a, b in zip(ids["drafted"], ids["plain"], strict=True))
            tokens = sum(map(len, ids["drafted"]))
            calls = sum(g.counts.target_calls for g in written[-len(chunk) :])
            row = {"users": len(chunk), "identical": equal, "tokens_per_call": tokens / calls}
            rounds.append({**times, **row})
        note(f"movielens {penalty}: {len(written)} of {len(requests)}, {times}")
    sources = [sum(g.counts.accepted_by_source[i] for g in written) for i in range(len(SOURCES))]
    tokens = sum(len(g.token_ids) for g in written)
    calls = sum(g.counts.target_calls for g in written)
    shares = {name: n / tokens for name, n in zip(SOURCES, sources, strict=True)}
    return {
        "users": len(written),
        "new_tokens": tokens,
        "target_calls": calls,
        "tokens_per_call": tokens / calls,
        "share_of_tokens": shares,
        "pool_share": shares["group"] + shares["all"],
        "cut_texts": sum(g.finish_reason == "length" for g in written),
        "drafted_seconds": seconds,
        "times_plain_said": told.times_plain,
        "speedup": paired_ratio([r["plain"] for r in rounds], [r["drafted"] for r in rounds]),
        "identical_texts": sum(int(r["identical"]) for r in rounds),
        "compared_texts": sum(int(r["users"]) for r in rounds),
        "rounds": rounds,
        "dtype": generator.dtype,
        "generation_settings": {"repetition_penalty": penalty},
        "settings": ours.model_dump(mode="json", exclude={"target"}),
        "slots": (drafting.cost_state or {}).get("slots"),
    }


def _write(
    writer: Generator, chunk: Seq[Request], curve: CostCurve
) -> tuple[list[Generation], Spent]:
    """The texts of a chunk, and what they took; each joins the pool in the step that finishes it,
    as in strict jobs."""
    from draftrec.engine.text.stats import Spent
    from draftrec.jobs.knowledge.account import curve_seconds

    seconds = Spent()
    together = min(len(chunk), writer.slots(max(len(r.prompt_ids) for r in chunk)))

    def join(request: Request, text: Generation) -> None:
        writer.commit([(text.token_ids, request.group)])

    def step(stats: StepStats) -> None:
        nonlocal seconds
        passes, plain = curve_seconds(curve, stats, together)
        seconds += Spent(passes=passes, plain=plain)

    before = writer.timing.spent
    done = writer.run(chunk, on_text=join, on_step=step)
    return done, seconds + writer.timing.spent - before


def _requests(generator: Generator, users: int | None) -> list[Request]:
    """The users' prompts as a job sends them."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "users.jsonl"
        run_command([
            "records", str(_RATINGS), str(_MOVIES), "--side=user", f"--output={output}", *_COLUMNS
        ])  # fmt: skip
        rows: list[Mapping[str, Any]] = [json.loads(x) for x in output.read_text().splitlines()]
    return kar_requests(generator, rows[:users], "user")


def kar_requests(generator: Generator, rows: Seq[Mapping[str, Any]], side: Side) -> list[Request]:
    """KAR's prompts of records, as a job sends them; keys in their order."""
    from draftrec.core import Request

    template = load_template("kar", side)
    prompts = [template.render(row) for row in rows]
    ids = generator.encode(prompts, chat=generator.has_chat_template)
    pairs = zip(rows, ids, strict=True)
    return [
        Request(str(r["entity_id"]), x, r.get("group"), key=i) for i, (r, x) in enumerate(pairs)
    ]


def _chunks(requests: Seq[Request], size: int) -> Iterator[Seq[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]


def main() -> None:
    """Parse, run, write a file for every piece, so that pieces can be run by themselves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["bookshop", "movielens"])
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "smollm2")
    parser.add_argument("--users", type=int, help="the first users only")
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--plain-every", type=int, default=4)
    parser.add_argument("--penalties", type=float, nargs="+", default=[1.0, 1.1])
    parser.add_argument("--results", type=Path, help="folder of the result files")
    args = parser.parse_args()
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("model", "results")}

    def save(part: str, model: Path, penalty: float, result: dict[str, Any]) -> None:
        name = f"first-job-{part}" + ("" if penalty == 1.0 else "-penalty")
        name += "-tiles" * (part == "movielens" and has_tiles())
        payload = {"settings": settings | {"model": model.name}, part: result}
        write_result(name, payload, seed=0, folder=args.results)

    if args.part != "movielens":
        for penalty in args.penalties:
            with tempfile.TemporaryDirectory() as folder:
                result = bookshop(args, Path(folder), penalty)
                save("bookshop", demo_model_path(), penalty, result)
    if args.part != "bookshop":
        from draftrec.jobs.knowledge.generator import Generator

        generator = Generator.from_pretrained(args.model)
        for penalty in args.penalties:
            save("movielens", args.model, penalty, movielens(args, generator, penalty))


if __name__ == "__main__":
    main()
