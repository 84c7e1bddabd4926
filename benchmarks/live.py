"""A real instruct model writes: transformers, draftrec without drafts, and with each kind of them.

    python benchmarks/drafter.py prepare|fit --model DIR --side user --work WORK --texts 1000
    python benchmarks/live.py --model DIR --side user --work WORK --texts 1000

The prompts are KAR's of MovieLens entities that neither the pool nor the head has seen, the
settings those that one would use: bfloat16, the model's chat template, a repetition penalty. Every
way writes the same prompts, in turn, slice by slice: transformers' `generate`, and its prompt
lookup, which takes one text at a time; llama.cpp and OpenVINO GenAI, where they are installed
(`peer_llama_cpp.py` and `peer_openvino.py` say how); `plain`, without drafts; `first`, a first job,
whose pool, empty but for the few texts of the warm-up, receives each text as it ends; `pool`, with
what the model wrote about other entities; `head`, with a draft head beside that pool; `relaxed`,
with the pool, some words changed. The last line is the result.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import note, write_result
from drafter import Work, requests_of, written_of
from knowledge_live import Asked, Engine, another, compare, hugging_face, ours
from peers import PEERS, start_engines
from transformers import AutoModelForCausalLM

from draftrec.config import make_config
from draftrec.core import Generation, Request
from draftrec.jobs.knowledge.generator import Generator
from draftrec.pool.store import Pool


def first_job(generator: Generator) -> Engine:
    """As a job with an empty pool: each text joins it in the step that finishes it."""

    def join(request: Request, text: Generation) -> None:
        generator.commit([(text.token_ids, request.group)])

    return ours(generator, join)


def ways(
    args: argparse.Namespace,
    work: Work,
    bare: Generator,
    peers: dict[str, Any],
    batch: int,
    temperature: float,
) -> dict[str, Engine]:
    """Every way to write, at this batch size and temperature."""
    model = str(args.model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, args.dtype)).eval()
    asked: dict[str, Any] = {"max_new_tokens": args.max_new_tokens}
    asked["repetition_penalty"] = args.penalty
    drawn: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature:
        drawn |= {"temperature": temperature, "top_k": 0}
    found = {"hf_generate": hugging_face(reference, bare.tokenizer, batch, **asked, **drawn)}
    if batch == 1:
        found["hf_prompt_lookup"] = hugging_face(
            reference, bare.tokenizer, 1, prompt_lookup_num_tokens=10, **asked, **drawn
        )
    ends = frozenset(bare.eos_ids)
    told = Asked(batch, args.max_new_tokens, args.penalty, temperature, args.seed, ends)
    found |= {name: another(peer, told) for name, peer in peers.items()}
    pool = Pool(bare.fingerprint["tokenizer"])
    pool.add(written_of(work.run, args.texts))

    def made(base: Generator, draft: str, pool: Pool | None = None, **rule: Any) -> Generator:
        common = {**asked, "batch_size": batch, "temperature": temperature, "seed": args.seed}
        config = make_config(model, dtype=args.dtype, draft=draft, **common, **rule)
        return base.with_config(config, pool=pool)

    found["plain"] = ours(made(bare, "none"))
    found["first"] = first_job(made(bare, "pool", Pool(bare.fingerprint["tokenizer"])))
    found["pool"] = ours(made(bare, "pool", pool))
    if work.head(args.texts).is_dir():
        headed = Generator.from_pretrained(
            model, dtype=args.dtype, drafter=str(work.head(args.texts))
        )
        found["head"] = ours(made(headed, "pool", pool))
    if not temperature:
        found["relaxed"] = ours(made(bare, "pool", pool, accept="relaxed"))
    return found


def others(args: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The other engines that are installed, and what is known of all."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    options = {"openvino": {"precision": args.openvino_precision}}
    return start_engines(PEERS, model, scratch, options)


def measure(args: argparse.Namespace, work: Work, peers: dict[str, Any]) -> dict[str, Any]:
    """Every batch size and temperature."""
    bare = Generator.from_pretrained(args.model, dtype=args.dtype)
    cells: dict[str, Any] = {}
    for temperature in args.temperatures:
        for batch in args.batch:
            # Static batches idle while their longest text runs on: rounds must outlast one batch.
            count = args.prompts if batch == 1 else 2 * batch * args.rounds
            asked = requests_of(bare, work, count + batch)
            engines = ways(args, work, bare, peers, batch, temperature)
            name = f"{'sampled' if temperature else 'greedy'}_batch_{batch}"
            cells[name] = compare(engines, asked[:count], args.rounds, asked[count:])
            note(f"{name}: {cells[name]}")
    return cells


def main() -> None:
    """Parse, run; live-MODEL-SIDE.json goes to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a real model")
    parser.add_argument("--work", type=Path, required=True, help="that of drafter.py")
    parser.add_argument("--side", choices=("item", "user"), default="user")
    parser.add_argument("--texts", type=int, default=1000, help="texts of the pool and the head")
    parser.add_argument("--prompts", type=int, default=12, help="texts at batch 1")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--penalty", type=float, default=1.1, help="of repetitions")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--openvino-precision",
        choices=("f32", "bf16"),
        default="f32",
        help="bf16 ends the whole process with a floating point exception on some machines",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the result, live-NAME; the model's and the side if left")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    known_by = ("model", "work", "results", "name")  # what is no setting
    settings = {k: v for k, v in vars(args).items() if k not in known_by}
    with tempfile.TemporaryDirectory() as scratch:
        peers, known = others(args, Path(scratch))
        payload = {
            "settings": settings,
            "model": args.model.name,
            "peers": known,
            "live": measure(args, Work(args.work, args.side), peers),
        }
        for peer in peers.values():
            peer.close()
    name = args.name or f"{args.model.name}-{args.side}"
    write_result(f"live-{name}", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
