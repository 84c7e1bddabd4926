"""The drafters of vllm_proposer.py on recorded texts: what chains a large model would accept.

The text is what the model writes greedily, so a draft is accepted as far as it agrees. Texts of the
train split are known beforehand, held-out ones are replayed; nothing grows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from draftrec.core import IntArray
from draftrec.integrations.vllm.rows import RunningText
from draftrec.integrations.vllm.settings import ProposerSettings
from draftrec.integrations.vllm.setup import EngineFacts, make_drafter
from draftrec.models.loading import load_tokenizer, tokenizer_fingerprint
from draftrec.pool.store import Pool

TASKS = ("chatqa_user", "gear_user", "gear_item")
Draft = Callable[[list[int]], list[int]]  # after these new tokens of the text
Start = Callable[[str, list[int]], Draft]  # of a text, by its name and prompt


def replayed(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """By task and engine: tokens per step and drafted tokens per step."""
    tokenizer: Any = load_tokenizer(options.model)
    rows = pq.read_table(options.prompts).to_pylist()
    found: dict[str, Any] = {}
    for task in TASKS:
        known, tests = (
            list(_texts(tokenizer, rows, (task, split), count, options.seed))
            for split, count in (("train", options.replay_known), ("heldout", options.replay_texts))
        )
        engines = {
            "suffix": _arctic(known, options.tokens, 1.0),
            "suffix, tuned": _arctic(known, options.tokens, 4.0),
            "pool": _pool(tokenizer, known, options.tokens, folder / task),
        }
        found[task] = {
            "known_texts": len(known),
            "texts": len(tests),
            "engines": {name: _replay(start, tests) for name, start in engines.items()},
        }
    return found


def _replay(start: Start, tests: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    passes = drafted = tokens = 0
    for number, (prompt, text) in enumerate(tests):
        draft, done, new = start(f"replayed-{number}", prompt), 1, text[:1]
        passes += 1
        tokens += len(text)
        while done < len(text):
            chain, rest = draft(new), text[done:]
            same = 0
            while same < min(len(chain), len(rest) - 1) and chain[same] == rest[same]:
                same += 1
            new = rest[: same + 1]
            done += len(new)
            passes += 1
            drafted += len(chain)
    return {
        "tokens_per_step": round(tokens / passes, 3),
        "drafted_per_step": round(drafted / passes, 2),
    }


def _pool(tokenizer: Any, known: list[Any], tokens: int, folder: Path) -> Start:
    fingerprint = tokenizer_fingerprint(tokenizer)
    pool = Pool(fingerprint)
    pool.add((np.array(text, np.int32), None) for _, text in known)
    pool.save(folder)
    facts = EngineFacts(tokens, 1 << 20, 1, fingerprint, frozenset([tokenizer.eos_token_id]))
    drafter = make_drafter(ProposerSettings(pool=str(folder)), facts)

    def start(_name: str, prompt: list[int]) -> Draft:
        running = RunningText(_ids(prompt), None)

        def draft(new: list[int]) -> list[int]:
            running.extend(_ids(new))
            return drafter.draft([running], tokens)[0]

        return draft

    return start


def _arctic(known: list[Any], tokens: int, factor: float) -> Start:
    """As vLLM's `suffix` calls it, with its defaults but for the length factor."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache

    depth = 24
    cache: Any = SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=10_000)
    for number, (prompt, text) in enumerate(known):
        cache.start_request(f"known-{number}", prompt)
        cache.add_active_response(f"known-{number}", text)
        cache.stop_request(f"known-{number}")

    def start(name: str, prompt: list[int]) -> Draft:
        for other in list(cache.active_requests):
            cache.stop_request(other)
            cache.evict_cached_response(other)  # replayed texts are not drafted from
        cache.start_request(name, prompt)
        context = list(prompt)

        def draft(new: list[int]) -> list[int]:
            cache.add_active_response(name, new)
            context.extend(new)
            return cache.speculate(
                name, context[-depth:], max_spec_tokens=tokens, max_spec_factor=factor,
                min_token_prob=0.1,
            ).token_ids  # fmt: skip

        return draft

    return start


def _texts(
    tokenizer: Any, rows: list[dict[str, Any]], kind: tuple[str, str], count: int, seed: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Prompt and text, as token ids, of `count` rows of a task and split."""
    own = [r for r in rows if (r["task"], r["split"]) == kind]
    for i in np.random.default_rng(seed).permutation(len(own))[:count]:
        text = tokenizer(own[i]["text"], add_special_tokens=False, verbose=False).input_ids
        yield tokenizer(own[i]["prompt"]).input_ids, [*text, tokenizer.eos_token_id]


def _ids(tokens: list[int]) -> IntArray:
    return np.array(tokens, np.int32)
