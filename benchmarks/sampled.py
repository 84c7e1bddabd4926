"""What it is worth to drafts of sampled texts that they know what tokens are drawn by.

A small real model samples texts for a pool and, for other entities, texts that are reported. The
latter are drafted from the pool twice: by the pool alone, and with the noise that the target draws
by (`draftrec.engine.noise`). What is drawn does not depend on drafts, so recorded texts give the
tokens per call of both; the second way also runs live. The last line is the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import SHARED, note, write_result
from knowledge_live import MAX_NEW, requests_from

from draftrec.config import make_config
from draftrec.core import Generation, IntArray, Request
from draftrec.engine.noise import noise_of
from draftrec.engine.text.batch import RunningSequence
from draftrec.evaluate.replay.loop import follow
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.drafter import PoolDrafter
from draftrec.pool.store import Pool

DEPTH = 24


def replayed(
    pool: Pool, texts: list[tuple[Request, IntArray]], nodes: int, seed: int | None
) -> dict[str, float]:
    """Tokens per call of all texts and of each task. `seed` None: drafts do not know the noise."""
    drafter = PoolDrafter(pool)
    tokens: dict[str, int] = {}
    calls: dict[str, int] = {}
    for request, text in texts:
        sequence = RunningSequence(0, 0, request, MAX_NEW + DEPTH)
        sequence.noise = None if seed is None else noise_of(seed, request.key)
        drafter.start(sequence)
        while sequence.new_tokens < len(text):
            tree = drafter.draft([sequence], nodes, DEPTH)[0]
            verdict = follow(tree, text[sequence.new_tokens :])
            sequence.extend(verdict, frozenset())
            drafter.observe([sequence], [verdict])
            for name in ("all", request.group or "none"):
                calls[name] = calls.get(name, 0) + 1
        drafter.stop(sequence)
        for name in ("all", request.group or "none"):
            tokens[name] = tokens.get(name, 0) + len(text)
    return {name: round(tokens[name] / calls[name], 4) for name in tokens}


def measure(generator: Generator, args: argparse.Namespace, temperature: float) -> dict[str, Any]:
    """One temperature: what both ways get with every number of nodes, and the live run."""
    path = args.data / "profiles.parquet"
    warm = requests_from(path, generator, "train", args.warm, args.seed)
    reported = requests_from(path, generator, "heldout", args.texts, args.seed + 1)

    def write(requests: list[Request], pool: Pool | None, **settings: Any) -> list[Generation]:
        config = make_config(
            str(args.model), dtype="float32", batch_size=20, max_new_tokens=MAX_NEW,
            temperature=temperature, seed=args.seed, **settings,
        )  # fmt: skip
        return generator.with_config(config, pool=pool).run(requests)

    def filled() -> Pool:
        pool = Pool(generator.fingerprint["tokenizer"])
        pool.add((text.token_ids, r.group) for text, r in zip(written, warm, strict=True))
        return pool

    written = write(warm, None, draft="none")
    plain = write(reported, None, draft="none")
    texts = [(r, text.token_ids) for r, text in zip(reported, plain, strict=True)]
    found: dict[str, Any] = {"tokens": sum(len(ids) for _, ids in texts), "nodes": {}}
    for nodes in args.nodes:
        blind = replayed(filled(), texts, nodes, None)
        told = replayed(filled(), texts, nodes, args.seed)
        ratio = {name: round(told[name] / blind[name], 4) for name in told}
        found["nodes"][nodes] = {"blind": blind, "told": told, "ratio": ratio}
        note(f"temperature {temperature}, {nodes} nodes: {blind} {told}")
    live = write(reported, filled(), draft="pool", budget=args.nodes[0])
    same = [a.token_ids.tolist() == b.token_ids.tolist() for a, b in zip(live, plain, strict=True)]
    calls = sum(text.counts.target_calls for text in live)
    found["live"] = {
        "nodes": args.nodes[0],
        "tokens_per_call": round(found["tokens"] / calls, 4),
        "identical_to_plain": sum(same),
        "texts": len(same),
    }
    return found


def main() -> None:
    """Parse, run, write sampled.json to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--texts", type=int, default=60, help="texts that are reported")
    parser.add_argument("--warm", type=int, default=200, help="texts in the pool")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model, dtype="float32", draft="none")
    found = {str(t): measure(generator, args, t) for t in args.temperatures}
    settings = {k: v for k, v in vars(args).items() if k in ("texts", "warm", "nodes", "seed")}
    payload = {"settings": settings, "model": args.model.name, "temperatures": found}
    write_result("sampled", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
