"""How much faster draftrec writes knowledge texts, measured side by side in one run.

`python benchmarks/knowledge.py` runs both halves (see knowledge_live.py, knowledge_replay.py); it
needs the data and the model folder given by --data and --model. The last line is the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from common import write_result
from knowledge_live import compare, engines, ours, requests_from
from knowledge_replay import build_model, run_replay

from draftrec.config import make_config
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool

_SHARED = Path(__file__).resolve().parents[2] / "shared"


def run_live(args: argparse.Namespace, generator: Generator) -> dict[str, Any]:
    """Greedy and sampled, at every batch size; pools warmed on texts the model wrote for others."""
    path = args.data / "profiles.parquet"
    warm = requests_from(path, generator, "train", args.warm, args.seed)
    config = make_config(str(args.model), dtype=args.dtype, batch_size=16, max_new_tokens=320)
    writer = generator.with_config(config)
    written = ours(writer)(warm)
    pool = Pool(generator.fingerprint["tokenizer"])
    pool.add((ids, r.group) for ids, r in zip(map(_array, written.texts), warm, strict=True))
    found: dict[str, Any] = {"warm_texts": len(warm), "dtype": args.dtype}
    narrow = args.dtype != "float32"
    other_dtype = "float32" if narrow else "bfloat16"
    other = Generator.from_pretrained(args.model, dtype=other_dtype, draft="none")
    for temperature in (0.0, 0.8):
        for batch in args.batch:
            # Static batches idle while their longest text runs on: rounds must outlast one batch.
            count = args.prompts if batch == 1 else 3 * batch * args.rounds
            requests = requests_from(path, generator, "heldout", count, args.seed + 1)
            ways = engines(generator, other, batch, temperature, pool)
            name = f"{'greedy' if temperature == 0 else 'sampled'}_batch_{batch}"
            found[name] = compare(ways, requests, args.rounds)
            print(name, found[name], flush=True)
    return found


def _array(ids: list[int]) -> Any:
    import numpy as np

    return np.array(ids, np.int32)


def main() -> None:
    """Parse, run, write knowledge-replay.json and knowledge-live.json to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=_SHARED / "data")
    parser.add_argument("--model", type=Path, default=_SHARED / "models" / "profile-lm")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompts", type=int, default=12, help="live prompts at batch 1")
    parser.add_argument("--warm", type=int, default=240, help="texts the model writes for the pool")
    parser.add_argument("--texts", type=int, default=16, help="replayed texts per trace, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["live", "replay"])
    parser.add_argument("--results", type=Path, help="folder of the result files")
    args = parser.parse_args()
    generator = Generator.from_pretrained(args.model, dtype=args.dtype, draft="none")
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("data", "model", "results")}

    def save(half: str, found: dict[str, Any]) -> None:
        """Written after every trace, so that an interrupted run keeps what it measured."""
        payload = {"settings": settings, half: found}
        write_result(f"knowledge-{half}", payload, seed=args.seed, folder=args.results)

    if args.only != "live":
        sizes = {b: max(args.texts, 2 * b) if b > 1 else args.texts for b in args.batch}
        model = build_model(args.seed)
        data = args.data, generator.tokenizer
        run_replay(data, sizes, args.seed, model, lambda found: save("replay", found))
    if args.only != "replay":
        save("live", run_live(args, generator))


if __name__ == "__main__":
    main()
