"""Do controls keep transformers' texts, and what do they cost?

    PYTHONPATH=src python benchmarks/controls.py [--part exactness costs] [--model DIR]

*Exactness*: tiny random models of several architectures in float32. For every setting, the texts of
`model.generate(do_sample=False)`, one prompt at a time, against draftrec's at several batch sizes,
with drafts that are right and wrong. Counted are texts that differ.

*Costs*: one real model, the same prompts under every setting and under none, interleaved and
repeated, each at a fixed budget and without drafts: milliseconds per pass, of which those that the
controls and stop strings took themselves.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from common import ROOT, SHARED, interleave, note, paired_ratio, spread, write_result
from exactness import read_prompts, requests_for
from transformers import GenerationConfig

from draftrec.config import AcceptConfig, ControlsConfig
from draftrec.core import Request
from draftrec.engine.text import loop
from draftrec.engine.text.controls import Control
from draftrec.engine.text.settings import make_controls, resolve
from draftrec.jobs.knowledge.generator import Generator

sys.path.insert(0, str(ROOT))
from tests.engine.text.helpers import PROMPTS, GuessingDrafter, make_engine, requests
from tests.models import zoo

ARCHITECTURES = ("llama", "qwen3", "mistral", "gemma3", "phi3", "gpt2", "gpt_neox")
EOS = (2, 40, 41, 42)
#: As in generation_config.json; ids of the tiny models.
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 12},
    "min_length": {"min_length": 20},
    "bad_words_ids": {"bad_words_ids": [[i] for i in range(3, 40, 3)] + [[5, 7], [40, 41]]},
    "sequence_bias": {"sequence_bias": [[[i], 2.0] for i in range(3, 90, 5)] + [[[5, 7], -3.0]]},
    "suppress_tokens": {"suppress_tokens": list(range(3, 60, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(3, 90))},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.4)},
    "all": {
        "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_new_tokens": 6,
        "bad_words_ids": [[11], [13, 17]], "suppress_tokens": [19, 23], "forced_eos_token_id": 2,
        "sequence_bias": [[[29], 1.0], [[31, 37], -1.0]], "begin_suppress_tokens": [43, 47],
        "exponential_decay_length_penalty": (8, 1.05),
    },
}  # fmt: skip


def forbid_one(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """A processor of the caller's own that costs nothing by itself."""
    scores[:, 0] = -torch.inf
    return scores


#: Options of `draftrec generate`, as a user would set them.
COSTS: dict[str, dict[str, Any]] = {
    "off": {},
    "repetition_penalty": {"repetition_penalty": 1.1},
    "presence and frequency": {"presence_penalty": 0.2, "frequency_penalty": 0.1},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 4},
    "min_new_tokens": {"min_new_tokens": 16},
    "logit_bias": {"logit_bias": tuple(f"{i}=-1" for i in range(5, 105))},
    "suppress_tokens": {"suppress_tokens": tuple(str(i) for i in range(5, 105))},
    "bad_words": {"bad_words": tuple(f"word{i} other" for i in range(100))},
    "stop": {"stop": ("\n\n\n", "###")},
    "sampled": {"temperature": 1.0},
    "sampled, top-k 50": {"temperature": 1.0, "sample_top_k": 50},
    "sampled, top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "sampled, min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "sampled, typical-p 0.9": {"temperature": 1.0, "typical_p": 0.9},
    "own processor": {},
}


def plain_texts(name: str, wanted: dict[str, Any], longest: int) -> list[list[int]]:
    """What `model.generate` writes, one prompt at a time."""
    texts = []
    for prompt in PROMPTS[:4]:
        ids = torch.tensor([prompt])
        out = zoo.plain(name).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest,
            eos_token_id=list(EOS), pad_token_id=0, **wanted,
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    return texts


def differing(name: str, wanted: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Texts that draftrec writes otherwise, over batch sizes and drafts."""
    expected = plain_texts(name, wanted, args.tiny_tokens)
    model = types.SimpleNamespace(
        generation_config=GenerationConfig(**wanted), config=zoo.plain(name).config
    )
    settings = resolve(ControlsConfig(), AcceptConfig(), model, None).settings
    truth = {str(i): text for i, text in enumerate(expected)}
    compared = different = accepted = 0
    for slots in args.batch:
        for hit in args.hit:
            engine = make_engine(
                name, GuessingDrafter(truth, hit), eos=frozenset(EOS), slots=slots,
                max_new_tokens=args.tiny_tokens, controls=make_controls(settings, frozenset(EOS)),
            )  # fmt: skip
            done = loop.generate(engine, requests(PROMPTS[:4]))
            compared += len(done)
            different += sum(g.token_ids.tolist() != e for g, e in zip(done, expected, strict=True))
            accepted += sum(g.counts.accepted_tokens for g in done)
    return {"texts": compared, "different": different, "accepted_draft_tokens": accepted}


def exactness(args: argparse.Namespace) -> dict[str, Any]:
    """Differences by architecture and setting."""
    found: dict[str, Any] = {}
    for name in args.architectures:
        found[name] = {s: differing(name, wanted, args) for s, wanted in SETTINGS.items()}
        note(f"{name}: {sum(r['different'] for r in found[name].values())} texts differ")
    every = [r for by_setting in found.values() for r in by_setting.values()]
    return {
        "new_tokens": args.tiny_tokens,
        "batch": args.batch,
        "chance_that_a_draft_is_right": args.hit,
        "texts": sum(r["texts"] for r in every),
        "different": sum(r["different"] for r in every),
        "architectures": found,
    }


class Clock:
    """Seconds inside what it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, call: Any) -> Any:
        def timed(*values: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*values)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class Run:
    """The same prompts under one setting: how many passes, and the controls' own seconds."""

    def __init__(self, base: Generator, name: str, todo: list[Request], budget: int) -> None:
        self.generator = base.with_settings(
            **COSTS[name], budget=budget, processors=[forbid_one] if "own" in name else []
        )
        self.generator.eos_ids = frozenset()  # texts of one length, whatever is asked of them
        self.todo, self.passes, self.own = todo, 0, Clock()
        self.count = 0

    def __call__(self) -> None:
        engine = self.generator.engine(max(len(r.prompt_ids) for r in self.todo))
        for control in engine.controls:
            self._time(control, "apply")
        if engine.stops:
            self._time(engine.stops, "cut")
        self.count += 1
        loop.generate(engine, self.todo, self._step)

    def _time(self, part: Control | Any, method: str) -> None:
        setattr(part, method, self.own.around(type(part).__dict__[method].__get__(part)))

    def _step(self, _stats: Any) -> None:
        self.passes += 1


def costs(args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per pass by setting, without and with drafts."""
    base = Generator.from_pretrained(
        args.model, dtype="float32", device=args.device, batch_size=args.slots,
        max_new_tokens=args.new_tokens, draft="prompt", generation_config="none",
    )  # fmt: skip
    rows = read_prompts(args.prompts, "heldout", args.texts)
    todo = requests_for(rows, base)[: args.texts]
    found: dict[str, Any] = {}
    for budget in args.budgets:
        runs = {name: Run(base, name, todo, budget) for name in COSTS}
        for run in runs.values():
            run()  # compiled and measured once, not counted
            run.passes, run.count, run.own.seconds = 0, 0, 0.0
        seconds = interleave(runs, args.rounds)
        by_name: dict[str, Any] = {}
        for name, run in runs.items():
            per_round = run.passes / run.count
            by_name[name] = {
                "ms_per_pass": spread([1000 * s / per_round for s in seconds[name]]),
                "of_it_controls_ms": round(1000 * run.own.seconds / run.passes, 3),
                "passes": per_round,
                "times_off_per_pass": paired_ratio(
                    [s / per_round for s in seconds[name]],
                    [s / (runs["off"].passes / runs["off"].count) for s in seconds["off"]],
                ),
            }
            note(f"budget {budget}, {name}: {by_name[name]['ms_per_pass']['median']} ms per pass")
        found[f"budget {budget}"] = by_name
    return {
        "model": str(args.model.name), "texts": len(todo), "slots": args.slots,
        "new_tokens": args.new_tokens, "rounds": args.rounds,
        "vocabulary": base.target.model.config.vocab_size, "per_pass": found,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write benchmarks/results/controls-*.json; 1 if any text differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    both = ["exactness", "costs"]
    parser.add_argument("--part", nargs="+", choices=both, default=both)
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--hit", type=float, nargs="+", default=[0.9, 0.0])
    parser.add_argument("--tiny-tokens", type=int, default=40)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--prompts", type=Path, default=SHARED / "data" / "profiles.parquet")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--budgets", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="folder of the result files")
    args = parser.parse_args(argv)
    different = 0
    if "exactness" in args.part:
        payload = exactness(args)
        different = payload["different"]
        write_result("controls-exactness", payload, folder=args.results)
    if "costs" in args.part:
        write_result("controls-costs", costs(args), folder=args.results)
    return int(different > 0)


if __name__ == "__main__":
    raise SystemExit(main())
