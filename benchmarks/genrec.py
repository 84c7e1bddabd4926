"""Speculative beams against plain ones and Hugging Face's, on a trained target and aligned drafts.

Timed: the same users, engines in turn, several rounds. Latency: users one by one, new to the cache
and come back with an item more. Whole: every user of the part, for fidelity and Recall / NDCG.
`--draft NAME=DIR` may be given several times; all but the first are run over the
whole part at the largest K only, under strict verification. `draftrec genrec fit`, `teach` and
`align` train the models; they are no part of the repository. The last line is the result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from beauty_table import SEQUENCES, SIDS
from common import note, write_result
from hf_beams import HfBeams

from draftrec.config import RecommendConfig
from draftrec.data.sequences import History, read_histories, read_semantic_ids
from draftrec.engine.target import Target
from draftrec.evaluate.beam_speed import EngineRun, UserBeams, beam_figures
from draftrec.jobs.recommend.catalogue import Catalogue, Query
from draftrec.jobs.recommend.loading import fit_retriever, parts_of
from draftrec.jobs.recommend.recommender import ItemRecommender
from draftrec.models.recommender import Recommender, load_recommender
from draftrec.train.session import figures

Engine = Callable[[Seq[Query]], list[UserBeams]]
HF, HF_MASKED, PLAIN = "hf_prefix_fn", "hf_trie_mask", "plain"


class Bench:
    """Models and data, loaded once."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        sids = read_semantic_ids(args.sids)
        target = load_recommender(args.target, "auto", args.dtype)
        self.catalogue = Catalogue.of(sids, target)
        self.items = fit_retriever(str(args.sequences), sids, part="valid")
        config = RecommendConfig(batch_size=args.batch, k=1)
        self.sizes = {"target": _parameters(target.model)}  # engines pack copies of weights
        self.trained = {"target": _trained(target)}
        self.drafts: dict[str, Target] = {}
        parts = parts_of(target, self.catalogue)
        for name, folder in args.draft:
            draft = load_recommender(folder, "auto", args.dtype)
            self.sizes[name] = _parameters(draft.model)
            self.trained[name] = _trained(draft)
            # As `draftrec genrec recommend` runs them, packed and by hand.
            self.drafts[name] = parts_of(draft, self.catalogue).target
        self.base = ItemRecommender(parts, self.catalogue, config, self.items)
        # A copy of its own: the engine's target attends in its own way from now on.
        plain = load_recommender(args.target, "auto", args.dtype)
        pad = int(plain.tokenizer.pad_token_id or 0)
        self.hf = HfBeams(plain.model, self.catalogue.trie, pad, args.batch)
        histories = read_histories(args.sequences, args.part, None)[: args.limit]
        self.histories = [h for h in histories if len(h.items)]
        self.dropped = len(histories) - len(self.histories)

    def engines(self, k: int, *, timed: bool, everything: bool = True) -> dict[str, Engine]:
        """By name; Hugging Face's for the timed part only, drafts but the first only where
        `everything` is asked for.

        `strict` drafts all levels that can be drafted, `N=..` with widths of their own, by the
        first draft and items, or items where there is no draft; `auto` what pays.
        """
        found: dict[str, Engine] = {}
        if timed:
            found[HF_MASKED] = self._hf(k, masked=True)
            found[HF] = self._hf(k, masked=False)
        n = max(k, self.args.draft_beams)
        steps = self.catalogue.trie.levels - 1
        auto = self.base.config.model_copy(update={"k": k})
        fixed = auto.model_copy(update={"draft_steps": steps, "draft_beams": n})
        wide = {
            f"N={'/'.join(map(str, w))}": fixed.model_copy(update={"draft_beams": w})
            for w in self.args.widths
            if min(w) >= k
        }
        found[PLAIN] = _ours(self.base.variant(auto))
        found["strict items"] = _ours(self.base.variant(fixed, None, self.items))
        found["auto items"] = _ours(self.base.variant(auto, None, self.items))
        for told, config in wide.items() if not self.drafts else ():
            found[f"strict items {told}"] = _ours(self.base.variant(config, None, self.items))
        for place, (name, draft) in enumerate(self.drafts.items()):
            if place and (timed or not everything):
                break
            found[f"strict {name}"] = _ours(self.base.variant(fixed, draft))
            found[f"strict {name} + items"] = _ours(self.base.variant(fixed, draft, self.items))
            if place:
                continue
            relaxed = fixed.model_copy(update={"verify": "relaxed"})
            found[f"relaxed {name}"] = _ours(self.base.variant(relaxed, draft))
            found[f"auto {name} + items"] = _ours(self.base.variant(auto, draft, self.items))
            for told, config in wide.items():
                found[f"strict {name} + items {told}"] = _ours(
                    self.base.variant(config, draft, self.items)
                )
            sample = fixed.model_copy(update={"verify": "sample"})
            found[f"sample {name}"] = _ours(self.base.variant(sample, draft))
            found["sample plain"] = _ours(self.base.variant(sample))
        words = self.args.engines
        baselines = (HF, HF_MASKED, PLAIN)
        return {
            name: engine
            for name, engine in found.items()
            if name in baselines or words is None or name.split()[0] in words
        }

    def _hf(self, k: int, *, masked: bool) -> Engine:
        def run(queries: Seq[Query]) -> list[UserBeams]:
            places = [self.catalogue.sids.places(q.history) for q in queries]
            prompts = [self.catalogue.encoder.encode(p) for p in places]
            return [self._as_items(b, k) for b in self.hf.run(prompts, k, masked=masked)]

        return run

    def _as_items(self, beams: np.ndarray, k: int) -> UserBeams:
        trie = self.catalogue.trie
        leaves = trie.walk(beams)[:, -1]
        items = [trie.items_at(leaf) for leaf in leaves.tolist() if leaf >= 0]
        found = np.concatenate([np.empty(0, np.int64), *items])[:k]
        found = self.catalogue.sids.items[found]  # the trie knows places in the catalogue
        return UserBeams(found, (), trie.levels, 0, len(beams), int((leaves < 0).sum()))


def _ours(recommender: ItemRecommender) -> Engine:
    def run(queries: Seq[Query]) -> list[UserBeams]:
        return [
            UserBeams(
                a.items, a.scores.tolist(), a.target_calls, a.accepted_steps,
                a.beams, a.invalid, a.drafted,
            )
            for a in recommender.recommend(queries)
        ]  # fmt: skip

    return run


def timed_part(bench: Bench, k: int) -> dict[str, Any]:
    """Engines in turn over the same users; the first of them rotates."""
    args = bench.args
    step = max(1, len(bench.histories) // args.timed)
    chosen = bench.histories[::step][: args.timed]
    queries = [Query(h.user, h.items) for h in chosen]
    engines = bench.engines(k, timed=True)
    answers: dict[str, list[UserBeams]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for turn in range(args.rounds + 1):  # the first round warms up, and lets the pace learn
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            answers[name] = engines[name](queries)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    runs = {name: EngineRun(answers[name], seconds[name]) for name in names}
    return _figures(runs, [HF, HF_MASKED, PLAIN], chosen, k)


def latency_part(bench: Bench, k: int) -> dict[str, Any]:
    """How long a user waits who is alone: one whose prompt is new to the cache, and one who was
    there an item ago. Plain search, and what pays of the first draft and items."""
    args = bench.args
    able = [h for h in bench.histories if len(h.items) > 1]
    users = able[:: max(1, len(able) // args.latency)][: args.latency]
    config = bench.base.config.model_copy(update={"k": k, "batch_size": 1})
    draft = next(iter(bench.drafts.values()), None)
    engines = {
        PLAIN: bench.base.variant(config),
        "auto": bench.base.variant(config, draft, bench.items),
    }
    waits: dict[str, dict[str, list[float]]] = {
        name: {"new": [], "returning": []} for name in engines
    }
    for turn in range(args.rounds + 1):
        for other, user in zip([*users[1:], users[0]], users, strict=True):
            shorter = replace(user, items=user.items[:-1])
            for name, engine in engines.items():
                for kind, first in (("new", other), ("returning", shorter)):
                    engine.recommend([Query(first.user, first.items)])
                    start = time.perf_counter()
                    engine.recommend([Query(user.user, user.items)])
                    if turn:
                        waits[name][kind].append(1000 * (time.perf_counter() - start))
    return {
        name: {
            kind: {f"p{p}_ms": round(float(np.percentile(ms, p)), 3) for p in (50, 99)}
            for kind, ms in kinds.items()
        }
        for name, kinds in waits.items()
    }


def whole_part(bench: Bench, k: int) -> dict[str, Any]:
    """Every user once."""
    queries = [Query(h.user, h.items) for h in bench.histories]
    runs: dict[str, EngineRun] = {}
    everything = k == max(bench.args.k)
    for name, engine in bench.engines(k, timed=False, everything=everything).items():
        start = time.perf_counter()
        answers = engine(queries)
        runs[name] = EngineRun(answers, [time.perf_counter() - start])
        note(f"k={k} {name}: {runs[name].seconds[0]:.1f} s")
    return _figures(runs, [PLAIN], bench.histories, k)


def _figures(
    runs: dict[str, EngineRun], baselines: list[str], histories: Seq[History], k: int
) -> dict[str, Any]:
    targets = [h.targets for h in histories]
    found = beam_figures(runs, PLAIN, baselines, targets, [k])
    return {name: figures.summary() for name, figures in found.items()}


def _parameters(model: Any) -> int:
    return sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def _trained(model: Recommender) -> dict[str, Any]:
    """How it was trained, where its folder tells: settings, and what came of it."""
    record = model.info.training
    if not record:
        return {}
    found = figures(model.folder, record, objective=model.info.objective)
    del found["output"]
    kept = ("lora", "batch_tokens", "lr")
    return {**found, **{name: record[name] for name in kept if record.get(name)}}


def _named(text: str) -> tuple[str, str]:
    name, found, folder = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, folder


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> None:
    """Parse, run, write genrec-beauty.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=_named, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--sequences", type=Path, default=SEQUENCES)
    parser.add_argument("--sids", type=Path, default=SIDS)
    parser.add_argument("--part", default="test")
    parser.add_argument("-k", type=int, nargs="+", default=[1, 3, 5, 10, 20])
    parser.add_argument("--draft-beams", type=int, default=40)
    parser.add_argument(
        "--widths", type=_widths, nargs="*", default=[], metavar="N1,N2,..",
        help="widths per level to try beside --draft-beams",
    )  # fmt: skip
    parser.add_argument(
        "--engines", nargs="*", choices=("strict", "auto", "relaxed", "sample"),
        help="measured beside plain search and Hugging Face's (default: all)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--timed", type=int, default=192, help="users of the timed part; 0: none")
    parser.add_argument("--latency", type=int, default=0, help="users who are timed one by one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="users of the whole part")
    parser.add_argument("--whole", type=int, nargs="*", help="K of the whole part (default: all)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="genrec-beauty")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    bench = Bench(args)
    settings = {
        name: getattr(args, name)
        for name in (
            "part",
            "k",
            "draft_beams",
            "batch",
            "timed",
            "latency",
            "rounds",
            "limit",
            "dtype",
        )
    }
    found: dict[str, Any] = {
        "settings": settings,
        "parameters": bench.sizes,
        "trained": bench.trained,
        "users": len(bench.histories),
        "users_without_history_left_out": bench.dropped,
        "timed": {},
        "whole": {},
    }
    for k in args.k if args.timed else []:
        found["timed"][str(k)] = timed_part(bench, k)
        write_result(args.name, found, seed=0, folder=args.results)
    for k in args.k if args.latency else []:
        found.setdefault("latency", {})[str(k)] = latency_part(bench, k)
        write_result(args.name, found, seed=0, folder=args.results)
    for k in args.k if args.whole is None else args.whole:
        found["whole"][str(k)] = whole_part(bench, k)
        write_result(args.name, found, seed=0, folder=args.results)


if __name__ == "__main__":
    main()
