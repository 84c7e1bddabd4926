"""Turns committed results into docs/benchmarks.md: six questions, each a sentence and a plot.

`python benchmarks/questions.py` rewrites the page and its plots (docs/assets, light and dark); a
test compares both with the results. The tables behind them are made by tables.py.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT
from markupsafe import Markup

from draftrec.report import plots
from draftrec.report.plots import Bar, Labels, Series, Stack

PAGE = ROOT / "docs" / "benchmarks.md"
ASSETS = ROOT / "docs" / "assets"
STYLE = ROOT / "src" / "draftrec" / "report" / "page.css"
#: Width of a letter of a caption, in pixels, where its font is a wide one.
_LETTER = 6
Results = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked, the results that answer it, the first of them on top; plot and sentences."""

    title: str
    name: str
    results: tuple[str, ...]
    plot: Callable[[Results], Markup]
    answer: Callable[[Results], str]


def _speeds(results: Results, setting: str = "greedy_batch_1") -> Results:
    return results["knowledge-live"]["live"][setting]


_WAYS = (
    ("hf_generate", "transformers generate", 0),
    ("hf_prompt_lookup", "transformers prompt lookup", 0),
    ("openvino", "OpenVINO GenAI", 0),
    ("llama_cpp", "llama.cpp", 0),
    ("plain", "draftrec without drafts", 2),
    ("first", "draftrec, first job", 1),
    ("pool", "draftrec, earlier texts", 1),
    ("relaxed", "draftrec relaxed", 3),
)


def _fast_plot(results: Results) -> Markup:
    bars = []
    for way, label, tone in _WAYS:
        speed = results["live-smollm2-item"]["live"]["greedy_batch_1"][way]["tokens_per_second"]
        bars.append(Bar(label, speed["median"], speed["low"], speed["high"], tone))
    about = (
        "SmolLM2-135M-Instruct describes items, one text at a time, greedy with a repetition "
        "penalty, in bfloat16 (OpenVINO: float32), one thread; median and extremes of three rounds."
    )
    return plots.bars(bars, Labels("Tokens per second", about))


def _fast(results: Results) -> str:
    one, sixteen = (_speeds(results, f"greedy_batch_{n}") for n in (1, 16))
    sampled = _speeds(results, "sampled_batch_16")
    firsts = [results[f"first-job-movielens{kind}"] for kind in ("", "-tiles")]
    first = " and ".join(
        f"{found['movielens']['speedup']['median']:.2f} times as fast over "
        f"{found['movielens']['compared_texts']} texts on an {_name(found['machine']['cpu'])}"
        for found in firsts
    )

    def times(cell: Results, way: str) -> str:
        return f"{cell[way]['speedup_over_best_plain']['median']:.2f}"

    def over_theirs(way: str) -> str:
        return f"{one[way]['speedup_over_hf_generate']['median']:.2f}"

    return "\n".join((
        _real(results),
        "",
        "Apart from that run:",
        "",
        f"- A first job about users, with default settings, against our own plain decoding: "
        f"{first}.",
        "- A small real model (6.8M parameters, which repeats itself more than a large one does), "
        f"one greedy text at a time: {over_theirs('plain')} times as fast as transformers' "
        f"`generate` without drafts, {over_theirs('strict')} with drafts from a pool of its own "
        f"texts, relaxed {over_theirs('relaxed')}. Against our own plain decoding drafts are "
        f"{times(one, 'strict')} times as fast (relaxed {times(one, 'relaxed')}), sixteen texts "
        f"at a time {times(sixteen, 'strict')}; sixteen sampled ones are slower with drafts: "
        f"{times(sampled, 'strict')}, a loss.",
        *_beside_llama_cpp(results),
    ))  # fmt: skip


def _real(results: Results) -> str:
    """A real instruct model's texts beside transformers'."""

    def times(cell: Results, way: str) -> str:
        return f"{cell[way]['speedup_over_hf_generate']['median']:.2f}"

    def all_ways(side: str) -> str:
        one = results[f"live-smollm2-{side}"]["live"]["greedy_batch_1"]
        return (
            f"{times(one, 'plain')} without drafts, {times(one, 'first')} in a first job, whose "
            f"pool starts empty, {times(one, 'pool')} with drafts from a thousand texts that it "
            f"wrote about others, relaxed {times(one, 'relaxed')}; transformers' prompt lookup "
            f"{times(one, 'hf_prompt_lookup')}{beside(one) if 'llama_cpp' in one else ''}."
        )

    def beside(cell: Results) -> str:
        return (
            f", OpenVINO GenAI, in float32, {times(cell, 'openvino')}, llama.cpp "
            f"{times(cell, 'llama_cpp')}"
        )

    def without_tiles() -> str:
        found = results["live-smollm2-item-avx2"]
        one, many = (found["live"][f"greedy_batch_{n}"] for n in (1, 16))
        ways = ("plain", "first", "pool", "relaxed")
        alone, sixteen = (", ".join(times(cell, way) for way in ways) for cell in (one, many))
        return (
            f"Items on a processor without matrix tiles ({_name(found['machine']['cpu'])}, "
            "float32), one at a time, without drafts, in a first job, with the pool, relaxed: "
            f"{alone}; transformers' prompt lookup {times(one, 'hf_prompt_lookup')}, OpenVINO "
            f"GenAI {times(one, 'openvino')}. Sixteen at a time: {sixteen}; OpenVINO GenAI "
            f"{times(many, 'openvino')}. A row more costs nearly what a row costs there, so that "
            "drafts of sixteen texts bring nothing."
        )

    item = results["live-smollm2-item"]["live"]
    eight, drawn = item["greedy_batch_8"], item["sampled_batch_1"]
    user = results["live-smollm2-user"]["live"]["greedy_batch_1"]["plain"]
    lost = item["sampled_batch_8"]["first"]["speedup_over_best_plain"]["median"]
    four = ", ".join(times(eight, way) for way in ("plain", "first", "pool", "relaxed"))
    three = ", ".join(times(drawn, way) for way in ("plain", "first", "pool"))
    return "\n".join((
        "SmolLM2-135M-Instruct, a real instruct model, in bfloat16 with a repetition penalty, so "
        "many times as fast as transformers' `generate`:",
        "",
        f"- Descriptions of items, one at a time: {all_ways('item')}",
        f"- Eight at a time, in that order: {four}{beside(eight)}.",
        f"- Sampled, one at a time: {three}. Eight at a time a first job's drafts cost more than "
        f"they saved: {lost:.2f} times our own plain decoding.",
        f"- {without_tiles()}",
        f"- Profiles of users, one at a time: {all_ways('user')} {user['looping']} of those "
        f"{user['texts']} end in a loop, which flatters drafts.",
    ))  # fmt: skip


def _name(cpu: str) -> str:
    return cpu.replace("(R)", "").removesuffix(" Processor")


def _beside_llama_cpp(results: Results) -> list[str]:
    """Plain steps of a real model beside llama.cpp's, where those were measured."""

    def beside(name: str, *batches: int) -> list[str]:
        cells = results[name]["models"].get("smollm2", {})
        ways = [cells.get(f"batch_{n}_plain", {}).get("bfloat16", {}) for n in batches]
        found = [way.get("over_llama_cpp") for way in ways]
        return [f"{ratio['median']:.2f}" for ratio in found if ratio]

    usual, long = beside("steps", 1, 4, 8), beside("steps-900", 1, 8, 16)
    if len(usual) < 3 or len(long) < 3:
        return []
    return [
        f"- A plain step of SmolLM2, in bfloat16, takes {usual[0]} times as long as llama.cpp's of "
        f"the same weights for one text, {usual[1]} for four, {usual[2]} for eight; after 900 "
        f"tokens, as long as prompts of profiles are, {long[0]} for one, {long[1]} for eight, "
        f"{long[2]} for sixteen."
    ]


def _exact_shares(results: Results) -> list[tuple[str, int, int]]:
    """(what was compared, how many were equal, of how many)"""
    found = [
        (f"float32, {n} at a time", batch["identical"], batch["prompts"])
        for n, batch in results["exactness"]["batch"].items()
    ]
    for n in (1, 4, 16):
        strict = _speeds(results, f"greedy_batch_{n}")["strict"]
        found.append((f"bfloat16, {n} at a time", strict["identical_to_plain"], strict["texts"]))
    controls = results["controls-exactness"]
    found.append(
        ("generation settings", controls["texts"] - controls["different"], controls["texts"])
    )
    beams = results["beam-exactness"]
    return [*found, ("beams", beams["searches"] - beams["mismatches"], beams["searches"])]


def _exact_plot(results: Results) -> Markup:
    bars = [
        Bar(
            f"{label} ({of:,})", 100 * equal / of, tone=1 if equal == of else 2,
            note=f"{100 * equal / of:.0f} %",
        )
        for label, equal, of in _exact_shares(results)
    ]  # fmt: skip
    about = "Texts, or lists (how many), that equal those of plain decoding, token for token."
    return plots.bars(bars, Labels("Equal to plain decoding", about, "% that are equal"), 100.0)


def _exact(results: Results) -> str:
    shares = {label: (equal, of) for label, equal, of in _exact_shares(results)}
    exactness = results["exactness"]
    ways = [exactness["batch"], *exactness.get("passes", {}).values()]
    single = [(b["identical"], b["prompts"]) for way in ways for b in way.values()]
    how = ", written by passes by hand, eagerly and frozen," if len(ways) == 3 else ""
    rounded = shares["bfloat16, 16 at a time"]
    bits = results["exactness-bits"]
    runs = bits["models"]["demo-lm"]["bfloat16"]["ordinary"].values()
    unasked = min(run["equal"] for run in runs)
    return (
        f"In float32 {sum(a for a, _ in single):,} of {sum(b for _, b in single):,} strict texts"
        f"{how} are `model.generate`'s, token for token. In bfloat16 two tokens can score alike up "
        "to rounding, and then another number of rows at once, with or without drafts, may choose "
        "the other; `--exact` rules that out, or says where it cannot. Passes by hand on a CPU are "
        f"exact without it: {rounded[0]} of {rounded[1]} texts written sixteen at a time equal "
        f"plain ones, and in each run {'' if unasked == bits['prompts'] else 'at least '}{unasked} "
        f"of the embedded model's {bits['prompts']}."
    )


def _relaxed_plot(results: Results) -> Markup:
    tones = {"strict": 1, "relaxed": 3, "typical": 4, "entropy": 2}
    trials = results["quality-ml100k"]["tune"]
    series = []
    for rule, tone in tones.items():
        found = [t for t in trials if t["rule"] == rule]
        x, y = [t["speedup"] for t in found], [100 * t["similarity_kept"] for t in found]
        series.append(Series(rule, x, y, tone))
    about = (
        "Each point is a setting of a rule: its speed, and how far its texts stay near strict ones."
    )
    words = Labels("Speed against likeness", about, "times plain decoding", "% of likeness kept")
    return plots.scatter(series, words)


def _relaxed(results: Results) -> str:
    folds = results["quality-ml100k"]["folds"]["auc"]
    lost, gained = folds["relaxed over baseline"], folds["baseline over no knowledge"]
    users, movies = (
        results["quality-ml100k"]["texts"][side]["entities"] for side in ("users", "movies")
    )
    return (
        f"On MovieLens-100K, with all {users} users' and {movies:,} movies' texts by a model of "
        "6.8M "
        f"parameters, relaxed (2, 0.1) changes the AUC of click models by {lost['mean']:+.3f} (95 "
        "% interval "
        f"{lost['low']:+.3f} to {lost['high']:+.3f}), where the texts had brought "
        f"{gained['mean']:+.3f}. {_relaxed_real(results)}"
        "Strict costs nothing. This says nothing about large models: [measure yours](quality.md)."
    )


def _relaxed_real(results: Results) -> str:
    """The same of the real instruct model, where that has been measured."""
    if "quality-smollm2" not in results:
        return ""
    folds = results["quality-smollm2"]["folds"]["auc"]
    lost, gained = folds["relaxed over strict"], folds["strict over no knowledge"]
    return (
        "With SmolLM2-135M-Instruct, whose texts change it by "
        f"{gained['mean']:+.3f} ({gained['low']:+.3f} to {gained['high']:+.3f}) against no "
        "knowledge, relaxed texts drafted from other entities' strict ones change it by another "
        f"{lost['mean']:+.3f} ({lost['low']:+.3f} to {lost['high']:+.3f}). "
    )


_SOURCES = (("prompt", "its prompt"), ("group", "its group"), ("all", "all texts"))


def _drafts_plot(results: Results) -> Markup:
    stacks = []
    for label, of in (("SmolLM2, 96 users", "movielens"), ("bookshop, 400 readers", "bookshop")):
        shares = _shares(results, of)
        rest = 1.0 - sum(shares.values())
        stacks.append(Stack(label, [*((n, shares[s]) for s, n in _SOURCES), ("no draft", rest)]))
    about = "Where the tokens of first jobs, whose pools start empty, were drafted from."
    return plots.shares(stacks, Labels("Sources of tokens", about, "% of all tokens"))


def _shares(results: Results, of: str) -> dict[str, float]:
    found = results[f"first-job-{of}"][of]
    if of == "movielens":
        return {source: found["share_of_tokens"][source] for source, _ in _SOURCES}
    found = found["drafted"]
    return {s: found["accepted_by_source"][s] / found["new_tokens"] for s, _ in _SOURCES}


def _drafts(results: Results) -> str:
    real, shop = (_shares(results, of) for of in ("movielens", "bookshop"))
    return (
        f"A first job of SmolLM2-135M-Instruct drafts {real['prompt']:.0%} of its tokens from the "
        "text's own "
        f"prompt and beginning and {real['all']:.0%} from the texts that it wrote before; one of "
        "the "
        f"embedded model, whose texts are alike, {shop['group'] + shop['all']:.0%} from other "
        "texts."
    ).replace("%", " %")


def _large_plot(results: Results) -> Markup:
    sizes = results["pool-scale"]["sizes"]
    x = [s["tokens"] / 1e6 for s in sizes.values()]
    series = [
        Series(f"{n} nodes", x, [s["lookup"][n]["p50_us"] for s in sizes.values()], tone)
        for n, tone in (("8", 1), ("16", 3), ("64", 2))
    ]
    about = "Median time in which a tree of so many nodes is drafted."
    words = Labels("Time of a draft", about, "million tokens in the pool", "microseconds")
    return plots.lines(series, words)


def _large(results: Results) -> str:
    sizes = results["pool-scale"]["sizes"]
    small, large = sizes["1M"], sizes["100M"]
    return (
        f"In a pool of {large['tokens'] / 1e6:.0f} million tokens a tree of 16 nodes takes "
        f"{large['lookup']['16']['p50_us']:.0f} microseconds, in one of a million "
        f"{small['lookup']['16']['p50_us']:.0f}; its files take "
        f"{large['file_bytes_per_token']:.1f} bytes per "
        f"token and open in {large['open_ms']['median']:.0f} ms. What 100 million entities would "
        "take on "
        "many GPUs is [estimated, not measured](scaling.md)."
    )


def _drafted(ways: Results) -> str:
    """The name of the first trained draft, which results choose."""
    words = (way.removeprefix("strict ") for way in ways if way.startswith("strict "))
    return next(word for word in words if "items" not in word)


def _widest(ways: Results) -> str:
    """The draft beside items with widths of its own that took the fewest passes."""
    return min((way for way in ways if " N=" in way), key=lambda way: ways[way]["target_calls"])


def _beams_plot(results: Results) -> Markup:
    whole = results["genrec-beauty"]["whole"]
    ks, last = sorted(whole, key=int), whole[max(whole, key=int)]
    shown = (
        ("plain", "plain", 0),
        ("strict items", "items", 2),
        (f"strict {_drafted(last)}", "trained draft", 1),
        (_widest(last), "wide draft and items", 3),
    )
    series = [
        Series(label, [int(k) for k in ks], [whole[k][way]["target_calls"] for k in ks], tone)
        for way, label, tone in shown
    ]
    about = "Passes of the target per user, of four without drafts."
    words = Labels("Passes of the target", about, "K, the beams kept", "passes per user")
    return plots.lines(series, words)


def _beams(results: Results) -> str:
    whole = results["genrec-beauty"]["whole"]["20"]
    timed = results["genrec-beauty-timed"]["timed"]["20"]
    plain, items, draft, wide = (
        whole[way]["target_calls"]
        for way in ("plain", "strict items", f"strict {_drafted(whole)}", _widest(whole))
    )
    drafted = timed[f"strict {_drafted(timed)}"]["speedup"]["plain"]["median"]
    auto, grown = _auto(timed), results["genrec-grown-1"]["timed"]
    return (
        f"For the best 20 items of Amazon Beauty a small trained draft needs {draft:.2f} passes of "
        f"the target instead of {plain:.0f}, {wide:.2f} where it drafts six times as wide and "
        f"items beside it, proposed items alone {items:.2f}, with plain beam search's own lists. "
        "On a CPU, with a target of 1.5M weights, that is no gain in time: always drafting is "
        f"{drafted:.2f} times as fast; `--draft-steps auto` finds that out and leaves it "
        f"({auto:.2f} times). At a language model's size (107M weights in bfloat16, one user at a "
        f"time) drafts pay where few beams are kept: {_auto(grown['1']):.2f} times plain search at "
        f"K = 1, {_auto(grown['3']):.2f} at K = 3, {_auto(grown['20']):.2f} at K = 20."
    )


def _auto(ways: Results) -> float:
    """Plain search's time over that of drafts and items as far as they pay."""
    way = next(way for way in ways if way.startswith("auto ") and way.endswith(" + items"))
    return ways[way]["speedup"]["plain"]["median"]


QUESTIONS = (
    Question("How fast?", "fast", (
        "live-smollm2-item", "live-smollm2-item-avx2", "live-smollm2-user", "knowledge-live",
        "first-job-movielens", "first-job-movielens-penalty",
        "first-job-movielens-tiles", "first-job-movielens-penalty-tiles",
        "first-job-bookshop", "first-job-bookshop-penalty", "knowledge-replay", "sampled",
        "steps", "steps-900", "packed-weights", "packed-weights-tiles", "host-time", "prompts",
        "transformers", "vllm", "load",
    ), _fast_plot, _fast),
    Question("Is it exact?", "exact", (
        "exactness", "exactness-bits", "exactness-bits-frozen", "exactness-bits-cost",
        "controls-exactness", "controls-costs",
        "structured", "kill-resume", "beam-exactness", "beam-sampling",
    ), _exact_plot, _exact),
    Question("What does relaxed cost?", "relaxed",
             ("quality-ml100k", "quality-smollm2", "encoders"), _relaxed_plot, _relaxed),
    Question("What do drafts come from?", "drafts", (
        "pool-rivals", "pool-published", "pool-refresh", "pool-groups", "drafter-smollm2-item",
        "drafter-smollm2-item-1000", "drafter-smollm2-item-batch8", "drafter-smollm2-item-nodes16",
        "drafter-smollm2-user-nodes16", "drafter-smollm2-user-sampled", "drafter-profile-lm-user",
        "drafter-gemma3-item", "drafter-small", "drafter-plan", "recycling",
    ), _drafts_plot, _drafts),
    Question("How large can it get?", "large", ("pool-scale", "pool-workers", "ray", "memory"),
             _large_plot, _large),
    Question("What about beams?", "beams", (
        "genrec-beauty", "genrec-beauty-timed", "genrec-grown-1", "genrec-grown-8",
        "genrec-lora", "genrec-lora-timed",
        "beauty-table", "item-baseline", "blend-beauty",
        "blend-items-beauty", "sasrec-beauty", "blend-items-ml100k", "sasrec-ml100k",
        "id-schemes-ml100k", "item-trie",
    ), _beams_plot, _beams),
)  # fmt: skip


def read_results(folder: Path = RESULTS) -> Results:
    """All results by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def machine(result: Results) -> str:
    """The machine of a result in words."""
    m = result["machine"]
    return f"{m['cores']} cores of {m['cpu']}, {m['gpu'] or 'no GPU'}, PyTorch {m['torch']}"


def render(results: Results) -> str:
    """The page."""
    parts = [
        "# Benchmarks\n\nMade by `python benchmarks/questions.py` of the files in "
        "`benchmarks/results/`. "
        "Every figure and plot comes from a committed result; the [tables](tables.md) have all of "
        "them, "
        "with the machine and the commit, and `benchmarks/run` measures them again. **Not "
        "measured: any "
        "GPU.**\n"
    ]
    for q in QUESTIONS:
        shown = picture(q.name, _words(q.plot(results)))
        parts.append(
            f"## {q.title}\n\n{_wrapped(q.answer(results))}\n\n{shown}\n\n"
            f"[The tables behind it](tables.md#{slug(q.title)}).\n"
        )
    return "\n".join(parts)


def _wrapped(text: str) -> str:
    """Each line by itself, as a paragraph or a point of a list."""
    return "\n".join(
        textwrap.fill(
            line, 100, break_long_words=False, break_on_hyphens=False,
            subsequent_indent="  " if line.startswith("- ") else "",
        )
        for line in text.split("\n")
    )  # fmt: skip


def slug(title: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def _words(plot: Markup) -> str:
    """What a plot shows, for those who cannot see it."""
    title, about = re.findall(r"<title>(.*?)</title><desc>(.*?)</desc>", str(plot))[0]
    return f"{title}: {about}"


def picture(name: str, words: str, folder: str = "assets") -> str:
    """A plot for light and dark pages."""
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{folder}/{name}-dark.svg">'
        f'<img alt="{words}" src="{folder}/{name}-light.svg"></picture>'
    )


def drawings(results: Results) -> dict[str, str]:
    """File names and contents of all plots."""
    found = {}
    for q in QUESTIONS:
        for mode in ("light", "dark"):
            found[f"{q.name}-{mode}.svg"] = alone(
                q.plot(results), mode, machine(results[q.results[0]])
            )
    return found


def alone(plot: Markup, mode: str, caption: str) -> str:
    """A plot as a file of its own: its colours, its title above, its machine below."""
    style = STYLE.read_text()
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", roots[mode == "dark"]))
    rules = "\n".join(re.findall(r"^\.plot .*", style, re.MULTILINE)).replace(".plot ", "")
    rules = re.sub(r"var\((--[\w-]+)\)", lambda m: colours[m[1]], rules)
    head, width, height, title = re.match(
        r'(<svg [^>]*viewBox="0 0 (\d+) (\d+)" aria-label="([^"]*)">)', str(plot)
    ).groups()  # type: ignore[union-attr]
    inside = str(plot).removeprefix(head).removesuffix("</svg>")
    tall = int(height) + 52
    about = re.search(r"<desc>(.*?)</desc>", str(plot))[1]  # type: ignore[index]
    notes = [*textwrap.wrap(about, (int(width) - 24) // _LETTER), caption]
    tall += 15 * (len(notes) - 1)
    lines = "".join(
        f'<text class="tick" x="12" y="{int(height) + 40 + 15 * i}">{note}</text>'
        for i, note in enumerate(notes)
    )
    font = (
        'font-family="system-ui, Segoe UI, Roboto, DejaVu Sans, Arial, sans-serif" font-size="12"'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width} {tall}" '
        f'width="{int(1.5 * int(width))}" height="{int(1.5 * tall)}" aria-label="{title}" {font}>\n'
        f"<style>\ntext {{ fill: {colours['--ink']}; }}\n{rules}\n</style>\n"
        f'<rect width="{width}" height="{tall}" rx="8" fill="{colours["--card"]}"/>\n'
        f'<text class="value" x="12" y="20">{title}</text>\n'
        f'<g transform="translate(0 26)">{inside}</g>\n'
        f"{lines}\n</svg>\n"
    )


def main() -> None:
    """Write the page and its plots."""
    results = read_results()
    PAGE.write_text(render(results))
    ASSETS.mkdir(exist_ok=True)
    for name, content in drawings(results).items():
        (ASSETS / name).write_text(content)
    print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
    main()
