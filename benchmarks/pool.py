"""Draft pools against the best published draft structures, on recorded and synthetic texts.

Strict replay without a model: tokens per step, lookup times, memory. `--part rivals` compares
engines, `--part refresh` measures what an entity's previous text is worth, `--part groups` what
grouping is worth. The last line is the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import SHARED, note, write_result
from pool_runs import NAMES, OURS, RIVALS, Run, missing, processes, run_of
from pool_traces import (
    RECORDED,
    SYNTHETIC,
    UPDATES,
    Sizes,
    Trace,
    linked,
    recorded_trace,
    regrouped,
    shuffled_groups,
    synthetic_trace,
)

from draftrec.data.records import GroupTable

Result = dict[str, Any]
Measure = Callable[[Run], Result]


class Bench:
    """The command line's settings, and what was measured so far."""

    def __init__(self, args: argparse.Namespace, measure: Measure) -> None:
        self.args, self.measure = args, measure
        self.skipped: dict[str, str] = {}
        self.found: Result = {}
        self._tokenizer: Any = None

    def traces(self, names: list[str]) -> list[Trace]:
        """Those that can be had; the others go to `skipped` with a reason."""
        args, traces = self.args, []
        for name in names:
            sizes = Sizes(args.texts, args.warm, args.seed)
            if name == SYNTHETIC:
                traces.append(synthetic_trace(sizes))
            elif not (args.data / "texts" / f"{name}.parquet").is_file():
                self.skipped[name] = f"no recorded texts in {args.data.name}/texts"
            elif not (args.tokenizer / "tokenizer.json").is_file():
                self.skipped[name] = f"no tokenizer in {args.tokenizer.name}"
            else:
                traces.append(recorded_trace(args.data, name, self._load_tokenizer(), sizes))
        return traces

    def engines(self, names: tuple[str, ...]) -> list[str]:
        """Those that are installed; the others go to `skipped` with a reason."""
        wanted = [name for name in names if name in (self.args.engines or names)]
        self.skipped.update({name: reason for name in wanted if (reason := missing(name))})
        return [name for name in wanted if name not in self.skipped]

    def run(self, trace: Trace, engine: str, label: str, **more: Any) -> Result:
        """Measure and tell: figures by budget."""
        slow = engine.startswith(("trie", "ngram"))
        repeats = 1 if slow else self.args.repeats
        run = run_of(trace, engine, self.args.budgets, **{"repeats": repeats, **more})
        figures = self.measure(run)
        rates = {budget: f["tokens_per_step"] for budget, f in figures.items()}
        note(f"{trace.name} {label}: tokens per step {rates}")
        return figures

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            from draftrec.models.loading import load_tokenizer

            self._tokenizer = load_tokenizer(self.args.tokenizer)
        return self._tokenizer


def rivals(bench: Bench) -> None:
    """Every engine on every trace, and ours against the best rival at every budget."""
    for trace in bench.traces(bench.args.traces or [SYNTHETIC, *RECORDED]):
        engines = {e: bench.run(trace, e, e) for e in bench.engines((*OURS, *RIVALS))}
        bench.found[trace.name] = {**trace.facts(), "engines": engines, **lead(engines)}


def lead(engines: Result) -> Result:
    """By budget: the rival with most tokens per step, and ours over it."""
    out: Result = {"best_rival": {}, "over_best_rival": {}}
    others = [name for name in engines if name in RIVALS]
    for budget, ours in engines.get(OURS[0], {}).items():
        if others:
            best = max(others, key=lambda name: engines[name][budget]["tokens_per_step"])
            ratio = ours["tokens_per_step"] / engines[best][budget]["tokens_per_step"]
            out["best_rival"][budget] = best
            out["over_best_rival"][budget] = round(ratio, 4)
    return out


def refresh(bench: Bench) -> None:
    """Updates of texts: with the previous text as a level of its own, as one more text of the
    pool, and without it."""
    for trace in bench.traces([UPDATES]):
        chains = linked(trace)
        later = [r for r in chains if r.previous_ids is not None]
        first = [replace(r, previous_ids=None) for r in chains if r.previous_ids is None]
        plain = [replace(r, previous_ids=None) for r in later]
        ways: dict[str, Result] = {
            "without": {"texts": plain},
            "in_the_pool": {"texts": plain, "grow_after": first},
            "previous": {"texts": later},
            "previous_and_growth": {"texts": later, "grow_after": first},
        }
        engines = bench.engines(("pool", "prompt", "arctic", "ngram"))
        bench.found[trace.name] = {
            **replace(trace, texts=later).facts(),
            "engines": {
                e: {way: bench.run(trace, e, f"{e} {way}", **m) for way, m in ways.items()}
                for e in engines
            },
        }


def groups(bench: Bench) -> None:
    """The same texts under several groupings: all together, own group only, both levels."""
    for trace in bench.traces(bench.args.traces or ["gear_ml1m_user", "chatqa_ml1m_user"]):
        ways = {
            "attribute": trace,
            "random": regrouped(trace, shuffled_groups(trace, bench.args.seed)),
        }
        for name, path in bench.args.groups:
            table = GroupTable.load(path)
            entities = [r.entity_id for r in [*trace.texts, *trace.warm]]
            ways[name] = regrouped(trace, {e: table.get(e) for e in entities})
        found: Result = {"global": {"all": bench.run(trace, "all", "global")}}
        for way, regrouped_trace in ways.items():
            found[way] = {
                "groups": regrouped_trace.facts()["groups"],
                **{e: bench.run(regrouped_trace, e, f"{way} {e}") for e in ("group", "pool")},
            }
        bench.found[trace.name] = {**trace.facts(), "groupings": found}


_PARTS = {"rivals": rivals, "refresh": refresh, "groups": groups}


def _named_file(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError("give NAME=FILE")
    return name, Path(path)


def main(argv: list[str] | None = None) -> None:
    """Parse, run a part, write pool-<part>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*_PARTS], default="rivals")
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "models" / "profile-lm")
    parser.add_argument("--traces", nargs="+", choices=[SYNTHETIC, *RECORDED])
    parser.add_argument("--engines", nargs="+", choices=NAMES, help="only these of the part's")
    parser.add_argument("--groups", nargs="+", type=_named_file, default=[], metavar="NAME=FILE")
    parser.add_argument("--texts", type=int, default=100, help="entities whose texts are replayed")
    parser.add_argument("--warm", type=int, default=2000, help="most texts in the pool")
    parser.add_argument("--budgets", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--repeats", type=int, default=3, help="replays for the times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="folder of the result file")
    parser.add_argument("--name", help="of the result; pool-<part> by default")
    parser.add_argument("--in-process", action="store_true", help="no process of its own per run")
    args = parser.parse_args(argv)
    settings = {k: getattr(args, k) for k in ("texts", "warm", "budgets", "repeats", "traces")}
    with processes(in_process=args.in_process) as measure:
        bench = Bench(args, measure)
        _PARTS[args.part](bench)
    payload = {"settings": settings, "skipped": bench.skipped, "traces": bench.found}
    write_result(args.name or f"pool-{args.part}", payload, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
