"""One setting against plain decoding: the same prompts, in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from draftrec.config import DraftConfig
from draftrec.core import Generation, Request
from draftrec.evaluate.texts.quality import likeness, run_distinct
from draftrec.evaluate.texts.runs import RunTexts
from draftrec.evaluate.texts.similarity import by_tf_idf
from draftrec.evaluate.tune.space import accept_of
from draftrec.jobs.trials import Scalar, Settings

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator
    from draftrec.pool.store import Pool


class Race:
    """Times settings over `requests` against plain decoding, `rounds` times each.

    Plain decoding runs next to every setting, before it in even rounds and after it in odd ones:
    whatever else the machine does, it does to both. Called with a trial's settings, it returns the
    trial's figures (see `_figures`).
    """

    def __init__(
        self, generator: Generator, pool: Pool, requests: Seq[Request], rounds: int, depth: int
    ) -> None:
        self.requests, self.rounds, self.depth, self.pool = requests, rounds, depth, pool
        config = generator.config.model_copy(update={"draft": DraftConfig(draft="none")})
        self.plain = generator.with_config(config)
        # Also decides how many texts run together, which all settings take over.
        self.plain_texts = self.plain.run(requests)

    def __call__(self, settings: Settings) -> dict[str, Scalar]:
        rival = self._rival(settings)
        texts: list[Generation] = []
        spent: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for number in range(self.rounds):
            for is_rival in (number % 2 == 1, number % 2 == 0):
                found, times = _timed(rival if is_rival else self.plain, self.requests)
                spent[is_rival].append(times)
                texts = found if is_rival else texts
        return {**_speeds(spent[False], spent[True]), **self._figures(texts)}

    def _rival(self, settings: Settings) -> Generator:
        draft = DraftConfig(draft="pool", budget=int(settings["budget"] or 0), depth=self.depth)
        update = {"accept": accept_of(settings), "draft": draft}
        config = self.plain.config.model_copy(update=update)
        rival = self.plain.with_config(config, pool=self.pool)
        rival.run(self.requests[:1])  # caches grow, kernels compile: not timed
        return rival

    def _figures(self, texts: Seq[Generation]) -> dict[str, Scalar]:
        """Counts of the last round, and what became of the texts, the plain ones being the strict
        model's own.

        `loss_per_token`: nats of log-probability given up, over all tokens; `similarity`: mean
        TF-IDF cosine to the plain text; `similarity_kept`: the same on a scale from other entities'
        texts, 0, to the plain text, 1; `length_drift`, `distinct_2_drift`: relative changes.
        """
        plain, written = self._run_texts("plain", self.plain_texts), self._run_texts("run", texts)
        tokens = int(written.lengths.sum())
        total = {
            name: sum(getattr(g.counts, name) for g in texts)
            for name in ("target_calls", "drafted_tokens", "accepted_tokens", "relaxed_tokens")
        }
        near = by_tf_idf(plain.texts, written.texts)
        cosine, kept = float(near.cosines.mean()), near.kept.value
        own, base = run_distinct(written)["distinct_2"], run_distinct(plain)["distinct_2"]
        figures = {
            "tokens_per_call": tokens / total["target_calls"],
            "acceptance_rate": total["accepted_tokens"] / max(total["drafted_tokens"], 1),
            "relaxed_share": total["relaxed_tokens"] / tokens,
            "loss_per_token": sum(g.loss for g in texts) / tokens,
            "exact_match": likeness(plain, written)["exact_match"].value,
            "similarity": cosine,
            "similarity_kept": cosine if kept is None else kept,
            "length_drift": tokens / int(plain.lengths.sum()) - 1.0,
            "distinct_2_drift": own / base - 1.0 if own and base else None,
        }
        return {name: None if v is None else round(v, 5) for name, v in figures.items()}

    def _run_texts(self, name: str, texts: Seq[Generation]) -> RunTexts:
        return RunTexts(
            name,
            tuple(g.entity_id for g in texts),
            tuple(self.plain.decode(g.token_ids) for g in texts),
            tuple(g.token_ids for g in texts),
            np.array([g.finish_reason in ("eos", "stop") for g in texts], np.bool_),
        )


def _timed(
    generator: Generator, requests: Seq[Request]
) -> tuple[list[Generation], tuple[float, float]]:
    """Texts, and seconds by the clock and of this process's processor time."""
    start, used = time.perf_counter(), time.process_time()
    texts = generator.run(requests)
    return texts, (time.perf_counter() - start, time.process_time() - used)


def _speeds(plain: Seq[tuple[float, float]], rival: Seq[tuple[float, float]]) -> dict[str, Scalar]:
    """Plain decoding's seconds over the rival's, round by round: the median, lowest and highest by
    the clock, and the median of processor time, which other programs disturb less."""
    pairs = list(zip(plain, rival, strict=True))
    clock = [a[0] / b[0] for a, b in pairs]
    processor = [a[1] / b[1] for a, b in pairs]
    found = {
        "speedup": median(clock),
        "speedup_low": min(clock),
        "speedup_high": max(clock),
        "cpu_speedup": median(processor),
    }
    return {name: round(value, 4) for name, value in found.items()}
