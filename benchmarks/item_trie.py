"""The item trie at catalogue scale: building, bytes, the time of a masked step, filters.

The catalogue is synthetic: `--items` items, every code drawn evenly and independently from as many
per level as `--codes` says, so that nearly all tuples are distinct; a trained quantiser shares
prefixes more, which makes the trie smaller. A step asks for the legal tokens of 32 users x 40 beams
that stand on prefixes of random items, other ones in every repetition; the root stands for the
first step. The same with a Python dictionary from prefix to tokens, as published code has it, for
as many items as `--dict-items` says. One JSON line last.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import note, spread, write_result

from draftrec.items.trie import Filter, ItemTrie

_FIRST_TOKEN = 1000


def catalogue(items: int, codes: list[int], seed: int) -> Any:
    """Token ids int32 `[items, L]`, another range of ids on every level."""
    random = np.random.default_rng(seed)
    rows = np.empty((items, len(codes)), np.int32)
    first = _FIRST_TOKEN
    for level, count in enumerate(codes):
        rows[:, level] = random.integers(first, first + count, items)
        first += count
    return rows


def microseconds(
    make: Callable[[], Any], function: Callable[[Any], object], repeats: int
) -> dict[str, Any]:
    """Of one call, whose argument `make` makes anew each time outside the clock."""
    function(make())
    times: list[float] = []
    for _ in range(repeats):
        argument = make()
        start = time.perf_counter_ns()
        function(argument)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return spread(times)


def build(rows: Any, repeats: int) -> tuple[ItemTrie, dict[str, Any]]:
    """The trie, and what building it took."""
    items = np.arange(len(rows))
    ItemTrie.build(items[:2], rows[:2])  # compiles
    before = _peak_bytes()
    seconds: list[float] = []
    trie = None
    for _ in range(repeats):
        trie = None  # so that two are never held at once
        start = time.perf_counter()
        trie = ItemTrie.build(items, rows)
        seconds.append(time.perf_counter() - start)
    assert trie is not None
    return trie, {
        "build_seconds": spread(seconds),
        "build_peak_bytes_beyond_input": _peak_bytes() - before,
        "nodes": trie.nodes,
        "nodes_by_level": np.diff(trie.level_start).tolist(),
        "distinct_tuples": trie.leaves,
        "bytes": trie.nbytes,
        "bytes_per_item": round(trie.nbytes / len(rows), 2),
    }


def steps(trie: ItemTrie, rows: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of a step at each level: children of all beams, and the dense mask."""
    random = np.random.default_rng([args.seed, 1])
    beams = args.users * args.beams
    found: dict[str, Any] = {}
    for level in range(trie.levels):

        def nodes(level: int = level) -> Any:
            if level == 0:
                return np.zeros(beams, np.int64)
            picked = rows[random.integers(0, len(rows), beams), :level]
            return trie.walk(picked)[:, -1]

        found[str(level)] = {
            "children_us": microseconds(nodes, trie.children, args.repeats),
            "mask_us": microseconds(nodes, lambda n: trie.masks(n, args.vocabulary), args.repeats),
            "mean_children": round(len(trie.children(nodes())[1]) / beams, 2),
        }
    return found


def filters(trie: ItemTrie, args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds to build a filter, and to ask it about the children of a step."""
    random = np.random.default_rng([args.seed, 2])

    def places() -> Any:
        return random.integers(0, len(trie.items), args.denied)

    deny = Filter.deny(trie, places())
    second = trie.level_start[1] + random.integers(0, trie.first[1] - 1, args.users * args.beams)
    below = trie.children(second)[1]
    return {
        "denied": args.denied,
        "deny_us": microseconds(places, lambda p: Filter.deny(trie, p), args.repeats),
        "allow_us": microseconds(places, lambda p: Filter.allow(trie, p), args.repeats),
        "asked_nodes": len(below),
        "legal_us": microseconds(lambda: below, deny.legal, args.repeats),
    }


def dictionary(rows: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The same steps with a dictionary from prefix to tokens, one callback for each beam."""
    start = time.perf_counter()
    after: dict[tuple[int, ...], dict[int, None]] = {}
    for row in rows.tolist():
        for level, token in enumerate(row):
            after.setdefault(tuple(row[:level]), {})[token] = None
    lists = {prefix: list(tokens) for prefix, tokens in after.items()}
    seconds = time.perf_counter() - start
    del after
    held = sys.getsizeof(lists) + sum(
        sys.getsizeof(key) + sys.getsizeof(value) for key, value in lists.items()
    )
    random = np.random.default_rng([args.seed, 3])
    beams = args.users * args.beams

    def mask(prefixes: list[tuple[int, ...]]) -> Any:
        out = np.zeros((beams, args.vocabulary), np.bool_)
        for row, prefix in enumerate(prefixes):
            out[row, lists[prefix]] = True
        return out

    found: dict[str, Any] = {}
    for level in range(rows.shape[1]):

        def prefixes(level: int = level) -> Any:
            return list(map(tuple, rows[random.integers(0, len(rows), beams), :level].tolist()))

        found[str(level)] = {
            "children_us": microseconds(prefixes, lambda p: [lists[k] for k in p], args.repeats),
            "mask_us": microseconds(prefixes, mask, args.repeats),
        }
    return {
        "items": len(rows),
        "build_seconds": round(seconds, 3),
        "bytes_per_item_without_numbers": round(held / len(rows), 1),
        "steps": found,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: list[str] | None = None) -> None:
    """Parse, measure, write item-trie.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--codes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--beams", type=int, default=40)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--denied", type=int, default=100)
    parser.add_argument("--dict-items", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--builds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a dry run in seconds")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args(argv)
    if args.tiny:
        args.items, args.dict_items, args.repeats, args.builds = 3000, 500, 3, 2
    rows = catalogue(args.items, args.codes, args.seed)
    trie, built = build(rows, args.builds)
    note(f"built: {built}")
    found = {**built, "steps": steps(trie, rows, args), "filters": filters(trie, args)}
    note(f"steps and filters: {found['steps']} {found['filters']}")
    found["dictionary"] = dictionary(rows[: args.dict_items], args)
    note(f"dictionary: {found['dictionary']}")
    settings = {k: v for k, v in vars(args).items() if k not in ("seed", "results")}
    write_result("item-trie", {"settings": settings, **found}, seed=args.seed, folder=args.results)


if __name__ == "__main__":
    main()
