"""What a plan for many machines needs to know of this code: one result that `scaling.py` reads.

    PYTHONPATH=src python benchmarks/scaling_measured.py

Drafts that recorded texts accept, by nodes and by size of the pool; how far texts differ in length;
the host's work per sequence and pass, with a target that computes nothing; the driver's work per
record and text, and per shard as the manifest grows. Host times are the processor's, of one core.
"""

from __future__ import annotations

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from common import SHARED, note, spread, write_result
from pool_traces import Sizes, Trace, recorded_trace, synthetic_trace
from shop import stream_records

from draftrec.config import AcceptConfig
from draftrec.core import Counts, Drafter, DraftTree, Generation, IntArray, Request, Verdict
from draftrec.data.records import Entity, EntityReader, Layout
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import load_template
from draftrec.engine.packing import Segment, pack
from draftrec.engine.target import Scores
from draftrec.engine.text import loop
from draftrec.engine.text.accept import Strict
from draftrec.engine.text.batch import RunningSequence
from draftrec.engine.text.budget import FixedBudget
from draftrec.engine.text.loop import NoDrafter
from draftrec.evaluate.replay.loop import FromPool, ReplaySettings, replay
from draftrec.jobs.knowledge.manifest import InputEntry, Manifest, ShardEntry
from draftrec.jobs.knowledge.shards import RunFolder, Written
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.index import warm_up
from draftrec.pool.store import Pool

_TRACES = ("chatqa_ml1m_user", "gear_ml1m_user", "gear_ml1m_item")


def acceptance(trace: Trace, sizes: list[int], budgets: list[int]) -> dict[str, Any]:
    """Tokens per step by texts in the pool and draft nodes; lengths and steps of single texts."""
    found: dict[str, Any] = {"texts": len(trace.texts), "pools": {}}
    for size in sizes:
        if size > len(trace.warm):
            continue
        drafter = FromPool(Pool("benchmark"))
        drafter.add((r.token_ids, r.group) for r in trace.warm[:size])
        by_budget = {}
        for budget in budgets:
            done = replay(drafter, trace.texts, ReplaySettings(budget))
            by_budget[str(budget)] = {
                "tokens_per_step": round(done.tokens / done.steps, 4),
                "drafted_per_step": round(done.drafted / done.steps, 3),
            }
        found["pools"][str(size)] = {"tokens": drafter.tokens, "budgets": by_budget}
        note(f"{trace.name}: {size} texts: {by_budget}")
        if size == max(s for s in sizes if s <= len(trace.warm)):
            steps = [replay(drafter, [r], ReplaySettings(8)).steps for r in trace.texts]
            found["steps_variation"] = _variation(steps)
    lengths = [len(r.token_ids) for r in trace.texts]
    return {
        **found,
        "mean_tokens": round(float(np.mean(lengths)), 1),
        "length_variation": _variation(lengths),
    }


def _variation(values: list[int]) -> float:
    return round(float(np.std(values) / np.mean(values)), 4)


class HostTarget:
    """A target whose passes cost nothing but the host's part: laying out the rows."""

    shared_length = anew_length = 1 << 30

    def __init__(self) -> None:
        self.slab = self

    def reserve(self, slots: int, capacity: int) -> None:
        """Nothing is kept."""

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Nothing was computed."""

    def score(self, segments: list[Segment]) -> Scores:
        packed = pack(segments, torch.device("cpu"))
        scored = [i for i, s in enumerate(segments) if s.scored]
        return Scores(torch.zeros(packed.wanted, 2), scored)

    def commit(self, segments: list[Segment], paths: list[IntArray]) -> None:
        """Nothing to move."""


class HostRule(Strict):
    """The strict rule of a target that writes `texts`, int32 token ids by entity. `spared`: seconds
    of the processor that it took to look up what the target says, which are the benchmark's own."""

    def __init__(self, texts: Mapping[str, IntArray], eos_ids: frozenset[int]) -> None:
        super().__init__(AcceptConfig(), eos_ids)
        self.texts, self.spared = texts, 0.0

    def accept(
        self, batch: Seq[RunningSequence], trees: Seq[DraftTree], logits: torch.Tensor
    ) -> list[Verdict]:
        start = time.process_time()
        choices = np.full(len(logits), -1, np.int64)
        row = 0
        for sequence, tree in zip(batch, trees, strict=True):
            left = self.texts[sequence.request.entity_id][sequence.new_tokens :].tolist()
            children = dict(zip(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True),
                                range(len(tree)), strict=True))  # fmt: skip
            node: int | None = -1
            for token in left:
                choices[row + node + 1] = token
                if (node := children.get((node, token))) is None:
                    break
            row += 1 + len(tree)
        self.spared += time.process_time() - start
        return self.verdicts(batch, trees, choices)


def host_work(trace: Trace, slots: int, nodes: int, rounds: int) -> dict[str, Any]:
    """Microseconds of the host per sequence and pass of a job of some batches: prompts of 600
    tokens, 200 of which all share, drafting, verdicts, bookkeeping. The target computes nothing."""
    random = np.random.default_rng(0)
    prompts = random.integers(3, 30_000, (len(trace.texts), 600), np.int32)
    prompts[:, :200] = prompts[0, :200]
    requests = [
        Request(r.entity_id, prompt, r.group)
        for r, prompt in zip(trace.texts, prompts, strict=True)
    ]
    # No token within a text may end it.
    end = 1 + max(int(r.token_ids.max()) for r in trace.texts)
    texts = {r.entity_id: np.append(r.token_ids, np.int32(end)) for r in trace.texts}
    pool = Pool("benchmark")
    pool.add((r.token_ids, r.group) for r in trace.warm)
    seconds: list[float] = []
    tokens = calls = 0
    for _ in range(rounds):
        drafter: Drafter = PoolDrafter(pool) if nodes else NoDrafter()
        rule = HostRule(texts, frozenset([end]))
        engine = loop.Engine(
            HostTarget(), drafter, rule, FixedBudget(nodes), AcceptConfig(),  # type: ignore[arg-type]
            rule.eos_ids, slots, max(map(len, texts.values())) + 1,
        )  # fmt: skip
        start = time.process_time()
        done = loop.generate(engine, requests)
        seconds.append(time.process_time() - start - rule.spared)
        calls = sum(g.counts.target_calls for g in done)
        tokens = sum(len(g.token_ids) for g in done)
    per_call = [1e6 * s / calls for s in seconds]
    return {"us_per_sequence": spread(per_call), "tokens_per_call": round(tokens / calls, 3)}


def driver_work(texts: int, tokens: int, entries: list[int], folder: Path) -> dict[str, Any]:
    """Microseconds per text of what a driver does with shards, and of reading one again. Token ids
    are drawn evenly, so files are larger than those of real texts."""
    written = _shard(texts, tokens)
    run = RunFolder(folder)
    entry, _ = run.write_shard(0, written, [], 0)
    writing: list[float] = []
    for index in range(5):
        start = time.perf_counter()  # waiting for the disk counts
        run.write_shard(index, written, [], 0)
        writing.append(1e6 * (time.perf_counter() - start) / texts)
    message = pickle.dumps(written)
    receiving = _seconds(lambda: pickle.loads(message))
    fetching = [s for index in range(5) for s in _seconds(lambda i=index: run.texts(i), 1)]
    return {
        "texts_per_shard": texts,
        "read_us_per_record": reading(2 * texts, folder),
        "write_us_per_text": spread(writing),
        "receive_us_per_text": spread([1e6 * s / texts for s in receiving]),
        "fetch_us_per_text": spread([1e6 * s / texts for s in fetching]),
        "bytes_per_text": round((entry.part_size + entry.stats_size) / texts),
        "manifest_by_shards": {str(n): manifest_of(entry, n, run) for n in entries},
    }


def _shard(texts: int, tokens: int) -> list[Written]:
    random = np.random.default_rng(0)
    words, counts = " ".join(["word"] * int(tokens * 0.75)), Counts(target_calls=80)
    return [
        Written(
            Generation(str(i), random.integers(3, 32_000, tokens, np.int32), "eos", 600, counts),
            None, words, i,
        )
        for i in range(texts)
    ]  # fmt: skip


def manifest_of(entry: ShardEntry, shards: int, run: RunFolder) -> dict[str, Any]:
    """Milliseconds and bytes of a manifest of so many finished shards."""
    manifest = Manifest(
        settings={}, fingerprints={}, paths={}, versions={}, shards=[entry] * shards,
        input=InputEntry(sha256="0" * 64, files=1, records=1),
    )  # fmt: skip
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        run.write_manifest(manifest)
        times.append(1e3 * (time.perf_counter() - start))
    return {"ms": spread(times), "bytes": (run.path / "manifest.json").stat().st_size}


def reading(records: int, folder: Path) -> dict[str, Any]:
    """Microseconds per record: JSON lines with KAR's prompt for users rendered from them, and
    Parquet with prompts that are ready."""
    template = load_template("kar", "user")
    rows = list(islice(stream_records("user"), records))
    (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ready = [{"entity_id": r["entity_id"], "prompt": template.render(r)} for r in rows]
    pq.write_table(pa.Table.from_pylist(ready), folder / "ready.parquet")
    readers = {
        "rendered": EntityReader(open_records(folder / "records.jsonl"), Layout(template)),
        "ready": EntityReader(open_records(folder / "ready.parquet")),
    }
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        assert sum(isinstance(entity, Entity) for entity in reader) == records
        seconds = _seconds(lambda r=reader: list(r))
        found[name] = spread([1e6 * s / records for s in seconds])
    return found


def _seconds(work: Callable[[], object], rounds: int = 5) -> list[float]:
    """The processor's seconds of each round."""
    found: list[float] = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything; recorded traces only where they are at hand."""
    sizes = Sizes(args.texts, max(args.sizes), args.seed)
    synthetic = synthetic_trace(sizes)
    traces = [synthetic]
    tokenizer = args.tokenizer / "tokenizer.json"
    for name in _TRACES:
        if tokenizer.is_file() and (args.data / "texts" / f"{name}.parquet").is_file():
            from draftrec.models.loading import load_tokenizer

            traces.append(recorded_trace(args.data, name, load_tokenizer(args.tokenizer), sizes))
    found: dict[str, Any] = {
        "acceptance": {t.name: acceptance(t, args.sizes, args.budgets) for t in traces}
    }
    host: dict[str, Any] = {}
    crowd = synthetic_trace(replace(sizes, texts=3 * args.slots))
    for nodes in (0, 2, 8):
        host[str(nodes)] = host_work(crowd, args.slots, nodes, args.rounds)
        note(f"host, {nodes} nodes: {host[str(nodes)]}")
    found["host"] = {"slots": args.slots, "nodes": host}
    with tempfile.TemporaryDirectory() as folder:
        found["driver"] = driver_work(args.shard, 250, args.entries, Path(folder))
    note(f"driver: {found['driver']}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write benchmarks/results/scaling-measured.json."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--texts", type=int, default=64, help="replayed per trace")
    parser.add_argument("--sizes", type=int, nargs="+", default=[125, 250, 500, 1000, 2000, 4000])
    parser.add_argument("--budgets", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--slots", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard", type=int, default=1024)
    parser.add_argument("--entries", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warm_up()
    write_result("scaling-measured", measure(args), seed=args.seed, folder=args.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
