"""The tables of the quality study in docs/tables.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markdown import header, row

Result = dict[str, Any]

_SHOWN = {
    "exact_match": "exact match",
    "relaxed_share": "relaxed tokens",
    "similarity_kept": "similarity kept",
    "copied_texts": "copied texts",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "repetition": "repetition",
    "titles_leaked": "titles leaked",
}
_KNOBS = (
    "budget", "top_k", "min_prob", "max_deviations", "epsilon", "delta", "entropy_gate", "window",
)  # fmt: skip
_OF_TEXTS = ("deviations", "similarity kept", "copied", "titles leaked")
#: Figures that are no shares.
_COUNTS = {"titles_leaked", "self_bleu"}


def quality(result: Result) -> str:
    """Texts, click models and the frontier."""
    return _clicks(result) + _texts(result) + (_frontier(result["tune"]) if result["tune"] else "")


def quality_real(result: Result) -> str:
    """The study with a real instruct model: a row for each rule, its cost and its worth side by
    side."""
    runs, folds = result["settings"]["runs"], result["folds"]
    base = next(iter(runs))
    out = (
        "## The same with a real instruct model: `benchmarks/quality.py --target smollm2`\n\n"
        "SmolLM2-135M-Instruct, MovieLens-100K, the kar template, 96 tokens, repetition penalty "
        "1.1. Relaxed texts draft from texts of other entities, written strictly before. "
        "Changes are from the strict texts, over "
        f"{folds['splits']} splits that together test every user, one seed each "
        f"({', '.join(folds['models'])}; {', '.join(folds['adaptors'])}): mean and 95 % interval "
        "over splits.\n"
    )
    known = folds["auc"][f"{base} over no knowledge"]
    out += f"\nWhat strict texts are worth: AUC {_change(known)} over no knowledge.\n"
    sides = [(side, result["texts"][side]["runs"], result["runs"][side]) for side in result["runs"]]
    columns = ["run", "AUC, change", "LogLoss, change"]
    for side, _, _ in sides:
        columns += [f"{side}: tokens/call", *_OF_TEXTS]
    out += header(*columns)
    for name in runs:
        change = f"{name} over {base}"
        cells = ["-", "-"]
        if change in folds["auc"]:
            cells = [_change(folds[metric][change]) for metric in ("auc", "logloss")]
        for _, texts, costs in sides:
            cells += [
                f"{costs[name]['tokens_per_call']:.2f}",
                f"{costs[name]['relaxed_share']:.1%}",
            ]
            cells += _cells(texts[name], ("similarity_kept", "copied_texts", "titles_leaked"))
        out += row(name, *cells)
    for name, found in runs.items():
        out += f"\n`{name}`: `{found['options']}`" + ("." if name == list(runs)[-1] else ";")
    return out + "\n" + _speeds(result["speed"])


def _speeds(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return ""
    out = (
        "\nWall time over plain decoding, the same records in turns, one thread, eight texts at a "
        "time, the budget as it is by default: median, lowest and highest of three rounds.\n"
    )
    out += header("rule", *speed)
    for name in next(iter(speed.values())):
        cells = []
        for side in speed.values():
            times = sorted(side[name]["over_plain"])
            cells.append(f"{times[len(times) // 2]:.2f} ({times[0]:.2f} - {times[-1]:.2f})")
        out += row(name, *cells)
    return out


def encoders(result: Result) -> str:
    """Speed of the small encoders, by processor time."""
    s = result["settings"]
    out = (
        "## Texts to vectors: `benchmarks/encoders.py`\n\n"
        f"Made-up texts of {s['words']} words, one thread; texts per second of processor time, and "
        "how far a vector moves with its batch, as a share of its length.\n"
    )
    out += header("encoder", "texts per second", "batch of 8", "batch of 32")
    for name, speed in result["speed"].items():
        rate = speed["texts_per_cpu_second"]
        moved = result["distance_of_batch_sizes"].get(name, {})
        cells = [f"{moved[size]:.1g}" if size in moved else "-" for size in ("8", "32")]
        label = name if name == "hashed" else f"{s['encoder']}, {name}"
        rates = f"{rate['median']:,.0f} ({rate['low']:,.0f} - {rate['high']:,.0f})"
        out += row(label, rates, *cells)
    return out


def _clicks(result: Result) -> str:
    samples = result["samples"]
    counts = ", ".join(f"{part['samples']:,} {name}" for name, part in samples.items())
    seeds = result["settings"]["seeds"]
    same = ", ".join(f"{s}: {'yes' if v else 'NO'}" for s, v in result["vectors_identical"].items())
    out = (
        "## What relaxed texts cost click models: `benchmarks/quality.py`\n\n"
        f"MovieLens-100K, split by user ({counts} samples), texts of users and movies by the "
        f"small real model (6.8M parameters), vectors by minilm, {seeds} seeds. AUC on the test "
        "part: mean and 95 % interval over seeds. Changes are from the baseline's texts, seed by "
        f"seed. Strict texts have the baseline's vectors ({same}).\n"
    )
    runs = result["settings"]["runs"]
    out += header("model", "adaptor", "AUC, baseline's texts", *(f"{n}, change" for n in runs[1:]))
    for cell in result["clicks"]:
        changes = [_change(cell[n]["auc_change"]) if n in cell else "-" for n in runs[1:]]
        base = cell["baseline"]["auc"]
        out += row(cell["model"], cell["adaptor"], f"{base['mean']:.4f} {_range(base)}", *changes)
    out += "\nOver all models and adaptors (the mean of each seed):\n"
    out += header("run", "AUC, change", "LogLoss, change")
    for name, found in result["overall"].items():
        out += row(name, _change(found["auc"]), _change(found["logloss"]))
    folds = result["folds"]
    out += (
        f"\nOver {folds['splits']} splits that together test every user, one seed each "
        f"({', '.join(folds['models'])}; moe and mlp): intervals over splits, which speak of users "
        "as well.\n"
    )
    out += header("change", "AUC", "LogLoss")
    for name, change in folds["auc"].items():
        out += row(name, _change(change), _change(folds["logloss"][name]))
    out += "\nWhat the baseline's texts are worth: the change from no knowledge.\n"
    out += header("model", "adaptor", "AUC", "LogLoss")
    for gain in result["knowledge"]:
        figures = _change(gain["auc"]), _change(gain["logloss"])
        out += row(gain["model"], gain["adaptor"], *figures)
    return out


def _texts(result: Result) -> str:
    out = ""
    for side, found in result["texts"].items():
        out += (
            f"\n**Texts of {side}** ({found['entities']:,}), under the default limits of "
            "`draftrec compare`.\n"
        )
        out += header("run", "gate", *_SHOWN.values())
        for name, run in found["runs"].items():
            broken = ", ".join(run["broken"]) or ", ".join(run["undecided"])
            gate = run["outcome"] + (f" ({broken})" if broken else "")
            out += row(name, "-" if name == "baseline" else gate, *_cells(run))
    return out


def _cells(run: dict[str, Any], names: Iterable[str] = _SHOWN) -> list[str]:
    found: list[str] = []
    for name in names:
        value = run.get(name) and run[name]["value"]
        if value is None:
            found.append("-")
        else:
            found.append(f"{value:.2f}" if name in _COUNTS else f"{value:.1%}")
    return found


def _frontier(trials: list[dict[str, Any]]) -> str:
    out = (
        "\n**The frontier**: walltime over plain decoding (median, lowest and highest round), nats "
        "given up per token, and what is kept of the own text's similarity.\n"
    )
    columns = [c for c in _KNOBS if any(t.get(c) is not None for t in trials)]
    names = "speedup", "tokens/call", "relaxed", "nats/token", "similarity kept"
    out += header("rule", *(c.replace("_", " ") for c in columns), *names)
    for t in sorted(trials, key=lambda t: -t["speedup"]):
        cells = ["" if t.get(c) is None else t[c] for c in columns]
        out += row(
            t["rule"], *cells,
            f"{t['speedup']:.2f} ({t['speedup_low']:.2f} - {t['speedup_high']:.2f})",
            f"{t['tokens_per_call']:.2f}", f"{t['relaxed_share']:.1%}",
            f"{t['loss_per_token']:.3f}", f"{t['similarity_kept']:.2f}",
        )  # fmt: skip
    return out


def _change(value: dict[str, Any]) -> str:
    return f"{value['mean']:+.4f} {_range(value, '+.4f')}"


def _range(value: dict[str, Any], form: str = ".4f") -> str:
    return f"({value['low']:{form}} to {value['high']:{form}})" if value["low"] is not None else ""
