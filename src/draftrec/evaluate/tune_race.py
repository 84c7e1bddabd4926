"""One setting against plain decoding: the same prompts, in turns, in one process."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from draftrec.config import DraftConfig, GenerateConfig
from draftrec.core import Generation, Request
from draftrec.data.trials import Scalar, Settings
from draftrec.evaluate.text_quality import likeness, run_distinct
from draftrec.evaluate.text_runs import RunTexts
from draftrec.evaluate.text_similarity import by_tf_idf
from draftrec.evaluate.tune_space import accept_of

if TYPE_CHECKING:
    from draftrec.knowledge.generator import Generator
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
        rival = self.plain.with_config(self._config(settings), pool=self.pool)
        rival.run(self.requests[:1])  # caches grow, kernels compile: not timed
        plain_seconds: list[float] = []
        seconds: list[float] = []
        texts: list[Generation] = []
        for number in range(self.rounds):
            for timed, spent in self._turn(rival, plain_seconds, seconds, number):
                start = time.perf_counter()
                found = timed.run(self.requests)
                spent.append(time.perf_counter() - start)
                texts = found if timed is rival else texts
        ratios = [a / b for a, b in zip(plain_seconds, seconds, strict=True)]
        speeds: dict[str, Scalar] = {
            "speedup": round(median(ratios), 4),
            "speedup_low": round(min(ratios), 4),
            "speedup_high": round(max(ratios), 4),
        }
        return {**speeds, **self._figures(texts)}

    def _turn(
        self, rival: Generator, plain: list[float], seconds: list[float], number: int
    ) -> list[tuple[Generator, list[float]]]:
        pair = [(self.plain, plain), (rival, seconds)]
        return pair[::-1] if number % 2 else pair

    def _config(self, settings: Settings) -> GenerateConfig:
        draft = DraftConfig(draft="pool", budget=int(settings["budget"] or 0), depth=self.depth)
        update = {"accept": accept_of(settings), "draft": draft}
        return self.plain.config.model_copy(update=update)

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
            np.array([g.finish_reason == "eos" for g in texts], np.bool_),
        )
