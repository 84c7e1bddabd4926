"""The tables of generative recommendation in docs/tables.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from markdown import header, row, spread

from draftrec.config import RetrieverSettings

Result = dict[str, Any]
_KS = (1, 3, 5, 10, 20)


def _of(result: Result) -> str:
    """The catalogue, which earlier results do not name."""
    return str(result.get("catalogue", "Amazon Beauty"))


def _titled(title: str, script: str, result: Result) -> str:
    """A heading, which says the catalogue where it is another one."""
    name = _of(result)
    where = "" if name == "Amazon Beauty" else f" on {name}"
    return f"## {title}{where}: `benchmarks/{script}`\n\n"


def beauty_table(result: Result) -> str:
    """The data table, ours beside the reference."""
    out = (
        "## The same Beauty: `benchmarks/beauty_table.py`\n\n"
        "Amazon Beauty as AtSpeed uses it (rating 4 and more, one split in time for all users), "
        f"computed by draftrec: {result['agree']} of {result['compared']} figures round to those "
        "of the data in AtSpeed's repository.\n"
    )
    out += header("figure", "reference", "computed", "agrees")
    for name, r in result["figures"].items():
        ours = r["ours"]
        ours = f"{ours:,}" if isinstance(ours, int) else f"{ours:.4g}"
        known = r["reference"]
        known = f"{known:,}" if known >= 1 else f"{known:.3g}"
        out += row(name, known, ours, "yes" if r["agrees"] else "no")
    return out


def item_baseline(result: Result) -> str:
    """Recall and NDCG of what needs no model."""
    test = result["test"]
    users = next(iter(test.values()))["all items"]["multi"]["users"]
    out = (
        _titled("Recommending without a model", "item_baseline.py", result)
        + f"{_of(result)}, test part, {users:,} users, every test item a target, Recall@K / "
        "NDCG@K. "
        f"Tuned on the valid part ({result['settings']['objective']}; {result['tried']} settings "
        "tried); fitted to the train part, the last two rows to train and valid. Nobody takes an "
        "item twice in these data, so leaving out what a user has is fair, and shown apart.\n"
    )
    for way in ("all items", "without seen items"):
        out += f"\n**{way}**\n" + header("method", *(f"@{k}" for k in _KS), "error of R@10")
        for name, ways in test.items():
            found = ways[way]["multi"]
            cells = [f"{found[f'recall@{k}']:.4f} / {found[f'ndcg@{k}']:.4f}" for k in _KS]
            out += row(name, *cells, f"{ways[way]['standard_error_of_recall@10']:.4f}")
    known, speed = result["reach"]["train"], result["speed"]
    best = (f"@{k} {known['best_possible'][f'recall@{k}']:.4f}" for k in _KS)
    return out + (
        f"\n{known['targets_known']:.1%} of the test targets occur in the train part. Recommending "
        f"just these would have Recall {', '.join(best)}.\n"
        f"\nThe tuned one is fitted to {speed['interactions']:,} interactions in "
        f"{spread(speed['fit_seconds'])} seconds of the processor, takes "
        f"{speed['bytes'] / 1e6:.1f} MB, and proposes 40 items in "
        f"{speed['propose_us_p50']:.0f} us (99th percentile {speed['propose_us_p99']:.0f} us), in "
        f"batches of 32 users in {spread(speed['propose_us_per_user_of_32'])} us each.\n"
    )


def blend(result: Result) -> str:
    """A target, item-item, and what a blend of both finds."""
    s, test = result["settings"], result["test"]
    valid = result["valid"]
    names = {"target": "the model alone", "item-item": "item-item alone"}
    out = (
        _titled("A model and item-item together", "blend.py", result)
        + f"{_of(result)}, K = {s['k']}, a target of {result['parameters']:,} parameters, "
        f"item-item's best {s['candidates']} beside the beams. The weight "
        f"({result['weight']:g}) is the one with which most was found of the valid part "
        f"({valid['metric']}, {valid['users']:,} users, both fitted to train): "
        f"{valid['ways'][format(result['weight'], 'g')][valid['metric']]:.4f}; "
        + ", ".join(f"{told} {valid['ways'][told][valid['metric']]:.4f}" for told in names.values())
        + f". Below: the test part, {next(iter(test.values()))['users']:,} users, Recall@K / "
        "NDCG@K, errors of the mean over users, differences user by user.\n"
    )
    return out + _parts(result, "blend")


def blend_items(result: Result) -> str:
    """A target, item-item, an item model, and what blends of them find."""
    s, test = result["settings"], result["test"]
    valid, parameters = result["valid"], result["parameters"]
    metric = valid["metric"]
    alone = ", ".join(
        f"{name} {way[metric]:.4f}" for name, way in valid["ways"].items() if "alone" in name
    )
    chosen = "; ".join(
        f"{name} {valid['ways'][', '.join(f'{w:g}' for w in weights)][metric]:.4f} (item-item's "
        f"share {weights[0]:g}, the item model's {weights[1]:g})"
        for name, weights in result["weights"].items()
    )
    out = (
        _titled("A model, item-item and an item model together", "blend_items.py", result)
        + f"{_of(result)}, K = {s['k']}, a target of {parameters['target']:,} parameters, an item "
        f"model of {parameters['item model']:,}, item-item's and the item model's best "
        f"{s['candidates']} beside the beams. Shares are those with which most was found of the "
        f"valid part ({metric}, {valid['users']:,} users, all fitted to train): {chosen}; {alone}. "
        f"{_settings_of(s)}"
        f"Below: the test part, {next(iter(test.values()))['users']:,} users, Recall@K / NDCG@K, "
        "errors of the mean over users, differences user by user.\n"
    )
    return out + _parts(result, "blend of all")


def _settings_of(settings: Result) -> str:
    """What lists leave out, and the item-item beside, where that is not as usual."""
    out = "Chosen and measured without seen items. " if settings.get("exclude_seen") else ""
    out += "These are lists without seen items. " if settings.get("unseen") else ""
    tuned = settings.get("item_item") not in (None, asdict(RetrieverSettings()))
    return out + ("Item-item's settings were tuned on the valid part, too. " if tuned else "")


def _parts(result: Result, name: str) -> str:
    """What each part of a blend's test found, and whether drafts changed the blend."""
    strict, out = result["strict"], ""
    for fitted, part in result["test"].items():
        out += f"\n**Fitted to {fitted}**\n" + _compared(part)
    calls = strict["target_calls"]
    return out + (
        f"\nOf {strict['users']:,} users whose {name} was also searched with drafted items "
        f"({calls['drafted']:.2f} instead of {calls['plain']:.2f} target calls), "
        f"{strict['same_lists']:,} lists are the same; scores differ by {strict['score_gap']:.0e} "
        "at most.\n"
    )


def sasrec(result: Result) -> str:
    """A sequential model beside item-item."""
    s, variants = result["settings"], result["variants"]
    first = next(iter(variants.values()))
    chosen = ", ".join(
        f"{one['epochs']} of {name} ({max(one['valid_ndcg@20']):.4f}; both fits took "
        f"{one['processor_seconds'] / 60:.0f} minutes of a core)" for name, one in variants.items()
    )  # fmt: skip
    out = (
        _titled("A sequential model", "sasrec.py", result)
        + f"SASRec on {_of(result)}: {s['width']} dimensions, layers: {s['layers']}, heads: "
        f"{s['heads']}, dropout {s['dropout']:g}, the last {s['last']} items, "
        f"{first['parameters']:,} parameters, softmax over all items, of dot products or of "
        f"cosines divided by {s['temperature']:g}. Epochs chosen by NDCG@20 of the valid part: "
        f"{chosen}; as many for train and valid together, where nothing is left to choose by. "
        f"{_settings_of(s)}"
        f"Below: the test part, {result['users']:,} users, histories of train and valid items, "
        "Recall@K / NDCG@K, errors of the mean over users, differences user by user.\n"
    )
    for part, by_way in result["test"].items():
        for way, found in by_way.items():
            out += f"\n**Fitted to {part}, {way}**\n" + _compared(found)
    return out


def id_schemes(result: Result) -> str:
    """What is found by ids of several makes, and what these ids are like."""
    schemes, seen = result["schemes"], result["settings"]["exclude_seen"]
    seeds = len(next(iter(schemes.values()))["recall_by_seed"])
    first = next(iter(schemes))
    out = (
        _titled("What semantic ids are made of", "id_schemes.py", result)
        + f"{_of(result)}, test part, {result['users']:,} users, the same for all, plain search"
        + (", lists without seen items" if seen else "")
        + f". Targets differ in their ids alone, {seeds} of each, with other seeds: a user's "
        "figure is the mean of them, or, in the second table, each seed's own. Recall@K / NDCG@K, "
        f"errors of the mean over users, differences from {first} user by user.\n"
    )
    out += _compared(result)
    out += header(
        "ids", "items", "distinct", "codes used", "beginnings before the last code",
        "most items of a first code", "test items with an id",
        f"R@{result['settings']['k']} by seed",
    )  # fmt: skip
    for name, r in schemes.items():
        out += row(
            name, f"{r['items']:,}", f"{r['distinct']:,}", " x ".join(map(str, r["codes_used"])),
            r["distinct_beginnings"], r["largest_first"], f"{r['targets_with_id']:.1%}",
            ", ".join(f"{recall:.4f}" for recall in r["recall_by_seed"]),
        )  # fmt: skip
    return out


def _compared(found: Result) -> str:
    """Rows of ways to rank, then of differences between them."""
    out = header("ranked by", *(f"@{k}" for k in _KS), "error of R@10", "error of R@20")
    for rows, sign in ((found["ways"], ""), (found["gains"], "+")):
        for name, r in rows.items():
            pairs = ((r[f"recall@{k}"], r[f"ndcg@{k}"]) for k in _KS)
            cells = [f"{recall:{sign}.4f} / {ndcg:{sign}.4f}" for recall, ndcg in pairs]
            out += row(name, *cells, *(f"{r[f'recall@{k}_error']:.4f}" for k in (10, 20)))
    return out


def item_trie(result: Result) -> str:
    """Building, bytes and steps, beside a dictionary's."""
    known, slow, filters = result["settings"], result["dictionary"], result["filters"]
    beams = known["users"] * known["beams"]
    codes = " x ".join(map(str, known["codes"]))
    out = (
        "## Ten million items as a trie: `benchmarks/item_trie.py`\n\n"
        f"A synthetic catalogue of {known['items']:,} items, codes drawn evenly from {codes}, so "
        f"that {result['distinct_tuples']:,} tuples are distinct: {result['nodes']:,} nodes, built "
        f"in {spread(result['build_seconds'])} seconds with "
        f"{result['build_peak_bytes_beyond_input'] / 1e6:,.0f} MB at most beyond the input, "
        f"{result['bytes'] / 1e6:,.0f} MB in the end, {result['bytes_per_item']:.1f} bytes per "
        f"item. A step asks for {beams:,} beams at once ({known['users']} users x "
        f"{known['beams']}), other prefixes each time: the children as ranges, or a dense mask "
        f"over {known['vocabulary']:,} tokens. Beside it the same with a Python dictionary from "
        f"prefix to tokens over {slow['items']:,} of these items, built in "
        f"{slow['build_seconds']:.1f} seconds. Microseconds of a step.\n"
    )
    out += header("tokens so far", "children of a beam", "children", "mask", "dictionary's mask")
    for level, step in result["steps"].items():
        cells = (step["children_us"], step["mask_us"], slow["steps"][level]["mask_us"])
        out += row(level, f"{step['mean_children']:.2f}", *map(_whole, cells))
    return out + (
        f"\nA filter that denies {filters['denied']} items is built in "
        f"{_whole(filters['deny_us'])} us, one that allows as many in "
        f"{_whole(filters['allow_us'])} us; asking it about {filters['asked_nodes']:,} nodes takes "
        f"{_whole(filters['legal_us'])} us.\n"
    )


def _whole(value: dict[str, Any]) -> str:
    return f"{value['median']:,.0f} ({value['low']:,.0f} - {value['high']:,.0f})"
