"""Does relaxed verification cost quality? MovieLens-100K: histories, texts, vectors, click models.

    python benchmarks/quality.py all|STEP [--target profile-lm|smollm2] [--folder DIR]

Every step calls the command that a user would call, goes on where it was interrupted, and leaves
its files in the folder (they hold texts, so they are no part of the repository). The last step sums
them up as the result.

Two targets. `profile-lm`, 6.8M parameters, writes like its teachers but knows no facts; its pool
grows from its own texts. `smollm2`, a real instruct model of 135M (`--model`), is sent the built-in
template, writes with a repetition penalty, and drafts from texts of other entities, which it wrote
strictly before (users of MovieLens-1M, movies that MovieLens-100K does not have) or, in one run,
from its own relaxed ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from common import SHARED, note
from jobs import token_ids_of
from quality_data import COLUMNS, RATINGS, Files, part_users, write_inputs, write_records
from quality_result import SIDES, write_quality, write_real

from draftrec.data.events import FOLDS

_RELAXED = ("--accept", "relaxed", "--top-k", "2", "--min-prob", "0.1")
_CAPS = ("--max-deviations", "4", "--max-loss", "4")
_DRAFTED = ("--draft", "pool", "--budget", "16", "--batch-size", "8")
#: Of texts that do not change.
_OTHERS = ("--pool", "{others}", "--pool-lag", "1000")
#: A few nodes, as pay on a CPU.
_FEW = ("--budget", "8", "--batch-size", "8")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is written for one target: `common` options, those of each run, the baseline first, and
    of what the runs of `others` draw on; `clicked`: the runs whose vectors feed click models, and
    those models, with their adaptors."""

    common: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]
    clicked: tuple[str, ...]
    models: tuple[str, ...]
    adaptors: tuple[str, ...]
    others: int = 0


#: Strict vectors are the baseline's, which is checked, and `loose`, the planted fault that the gate
#: has to find, has to be found in the texts alone.
SMALL = Plan(
    common=("--max-new-tokens", "320", "--shard-size", "128"),
    runs={
        "baseline": ("--draft", "none", "--batch-size", "32"),
        "strict": _DRAFTED,
        "relaxed": (*_DRAFTED, *_RELAXED),
        "capped": (*_DRAFTED, *_RELAXED, *_CAPS),
        "loose": (*_DRAFTED, "--accept", "relaxed", "--top-k", "50", "--min-prob", "0"),
    },
    clicked=("baseline", "relaxed", "capped"),
    models=("din", "dcnv2", "deepfm"),
    adaptors=("moe", "mlp"),
)
#: What is tried with a real target. `rejoin`: any token may deviate that the model's own next four
#: choices follow.
RULES = {
    "relaxed": _RELAXED,
    "known": (*_RELAXED, "--deviate-to", "known"),
    "capped": (*_RELAXED, *_CAPS),
    "rejoin": ("--accept", "entropy", "--entropy-gate", "0", "--window", "4"),
    "typical": ("--accept", "typical"),
    "entropy": ("--accept", "entropy"),
}
#: `own`: drafts from the run's own relaxed texts, the rules' from those of others.
REAL = Plan(
    common=(
        "--template", "kar", "--max-new-tokens", "96", "--repetition-penalty", "1.1",
        "--threads", "1", "--shard-size", "128",
    ),
    runs={
        "strict": ("--batch-size", "16"),
        "own": (*_FEW, *_RELAXED),
        **{name: (*_FEW, *_OTHERS, *rule) for name, rule in RULES.items()},
    },
    clicked=("strict", "own", *RULES),
    models=("din", "dcnv2", "deepfm", "autoint"),
    adaptors=("moe", "mlp"),
    others=600,
)  # fmt: skip
PLANS = {"profile-lm": SMALL, "smollm2": REAL}
#: What is trained, several seeds, on one split for the small target.
MODELS = ("din", "dcnv2", "deepfm", "autoint")
ADAPTORS = ("moe", "hea", "mlp", "contrastive")


@dataclass(frozen=True, slots=True)
class Study:
    """Where everything lies, and what is to be done."""

    plan: Plan
    model: Path
    folder: Path
    only: tuple[str, ...]
    seeds: int
    workers: int
    tuned: int
    timed: int

    @property
    def runs(self) -> list[str]:
        return [n for n in self.plan.runs if not self.only or n in self.only]

    @property
    def clicked(self) -> list[str]:
        return [n for n in self.plan.clicked if n in self.runs]

    @property
    def baseline(self) -> str:
        return self.plan.clicked[0]

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    def records(self, side: str) -> Path:
        return self.inputs / f"{side}.jsonl"

    def run(self, name: str, side: str) -> Path:
        return self.folder / "runs" / name / side

    def vectors(self, name: str, side: str) -> Path:
        return self.folder / "vectors" / f"{name}-{side}.parquet"

    def clicks(self, name: str) -> Path:
        return self.folder / "clicks" / name

    def folds(self, name: str, fold: int) -> Path:
        return self.folder / "folds" / f"{name}-{fold}"

    def report(self, side: str) -> Path:
        return self.folder / "reports" / side

    def pool(self, side: str) -> Path:
        return self.folder / "pools" / side

    def write_inputs(self) -> Files:
        """The same files at every call."""
        if self.plan is SMALL:
            return write_inputs(self.inputs)
        return write_records(self.inputs, self.plan.others, seed=0)

    def job(self, side: str, settings: Seq[str]) -> list[str]:
        """The options of a run."""
        words = [*self.plan.common, *settings, "--model", str(self.model)]
        if "--template" in words:
            words += ["--side", {"users": "user", "movies": "item"}[side]]
        return [str(self.pool(side)) if w == "{others}" else w for w in words]


def others(study: Study) -> None:
    """Texts of other entities, and the pools that they make."""
    study.write_inputs()
    for side in SIDES * bool(study.plan.others):
        if not study.pool(side).exists():
            where = ("--output", study.run("others", side), "--save-pool", study.pool(side))
            job = study.job(side, ("--batch-size", "16"))
            draftrec("generate", study.records(f"other-{side}"), *job, *where)


def texts(study: Study) -> None:
    """All runs, users and movies."""
    study.write_inputs()
    for name in study.runs:
        for side in SIDES:
            where = ("--output", study.run(name, side))
            draftrec(
                "generate", study.records(side), *study.job(side, study.plan.runs[name]), *where
            )


def vectors(study: Study) -> None:
    """Texts to vectors, by the small encoder that needs no download."""
    for name in study.runs:
        for side in SIDES:
            output = study.vectors(name, side)
            if not output.exists():
                output.parent.mkdir(parents=True, exist_ok=True)
                run = study.run(name, side)
                draftrec("encode", run, "--encoder", "minilm", "--output", output)


def clicks(study: Study) -> None:
    """Click models without knowledge, and with the vectors of each run: of the small target several
    seeds on one split, of both one seed on each of ten splits, which together test every user."""
    study.write_inputs()
    for name in study.clicked * (study.plan is SMALL):
        train(study, name, study.clicks(name), (MODELS, ADAPTORS, study.seeds, 0))
    for fold in range(FOLDS):
        for name in study.clicked:
            what = (study.plan.models, study.plan.adaptors, 1, fold)
            train(study, name, study.folds(name, fold), what)


def train(study: Study, name: str, output: Path, what: tuple[Any, ...]) -> None:
    """One call of `draftrec ctr`; the baseline's has the models without knowledge, too."""
    models, adaptors, seeds, fold = what
    items = Files.in_folder(study.inputs).items
    data = (RATINGS, *COLUMNS, "--items", items, "--item-columns", "genres")
    users, movies = (study.vectors(name, side) for side in SIDES)
    knowledge = ("--user-vectors", users, "--item-vectors", movies)
    adaptors = ("none", *adaptors) if name == study.baseline else adaptors
    which = [w for m in models for w in ("--model", m)]
    which += [w for a in adaptors for w in ("--adaptor", a)]
    more = ("--seeds", seeds, "--fold", fold, "--workers", study.workers)
    draftrec("ctr", *data, *knowledge, *which, *more, "--output", output)


def compare(study: Study) -> None:
    """Texts of both sides and click models under the default limits: a report per side."""
    files = study.write_inputs()
    for side in SIDES:
        runs = [f"{name}={study.run(name, side)}" for name in study.runs]
        vectors = [w for n in study.runs for w in ("--vectors", f"{n}={study.vectors(n, side)}")]
        seeded = study.clicked * (study.plan is SMALL)
        clicks = [w for n in seeded for w in ("--ctr", f"{n}={study.clicks(n)}")]
        titles = ("--titles", files.titles, "--prompts", study.records(side))
        draftrec("compare", *runs, *vectors, *clicks, *titles, "--output", study.report(side))


def tune(study: Study) -> None:
    """The frontier of speed and quality of the small target: rules and their settings on some
    users, with a pool of the texts of the others."""
    if study.plan is not SMALL:
        return
    files = study.write_inputs()
    records, rest = study.inputs / "tuned.jsonl", study.folder / "others.jsonl"
    part_users(files.users, study.run("baseline", "users"), records, rest)
    pool = study.folder / "pool"
    if not pool.exists():
        draftrec("pool", "build", rest, "--tokenizer", study.model, "--output", pool)
    output = ("--output", study.folder / "chosen.yaml", "--report", study.folder / "tune")
    more = ("--batch-size", 4, "--max-new-tokens", 320)
    grid = ("--budgets", 16, "--sample", study.tuned, "--rounds", 2)
    draftrec("tune", records, "--model", study.model, "--pool", pool, *more, *grid, *output)


def speed(study: Study) -> None:
    """Wall time of every rule over plain decoding, of the real target: the same records by each in
    turns, one thread, the pool of other entities' texts, the budget as it is by default. Wants a
    quiet machine."""
    if study.plan is SMALL:
        return
    study.write_inputs()
    found: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        records = study.inputs / f"timed-{side}.jsonl"
        rows = study.records(side).read_text().splitlines(keepends=True)
        records.write_text("".join(rows[: study.timed]))
        rules = {"strict": (), **{n: rule for n, rule in RULES.items() if n in study.runs}}
        ways = {n: (*_OTHERS, *rule) for n, rule in rules.items()}
        found[side] = _timed(study, side, records, {"plain": ("--draft", "none"), **ways})
        plain, strict = (study.folder / "timed" / f"{n}-{side}" for n in ("plain", "strict"))
        if token_ids_of(plain) != token_ids_of(strict):
            raise SystemExit(f"strict texts of {side} are not plain decoding's")
    (study.folder / "speed.json").write_text(json.dumps(found))


def _timed(
    study: Study, side: str, records: Path, ways: Mapping[str, Seq[str]]
) -> dict[str, dict[str, Any]]:
    """Of each way: seconds of every round, and tokens per call."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    calls: dict[str, float] = {}
    for turn in range(4):  # the first one compiles, and is not counted
        order = list(ways) if turn % 2 else list(ways)[::-1]
        for name in order:
            output = study.folder / "timed" / f"{name}-{side}"
            shutil.rmtree(output, ignore_errors=True)
            job = study.job(side, (*ways[name], "--batch-size", "8"))
            draftrec("generate", records, *job, "--output", output, "--quiet")
            summary = json.loads((output / "summary.json").read_text())
            calls[name] = summary["tokens_per_call"]
            if turn:
                seconds[name].append(summary["wall_seconds"])
    plain = median(seconds["plain"])
    return {
        name: {
            "seconds": found,
            "over_plain": [plain / s for s in found],
            "tokens_per_call": calls[name],
        }
        for name, found in seconds.items()
    }


def result(study: Study) -> None:
    """Sum up."""
    folds = {n: [study.folds(n, fold) for fold in range(FOLDS)] for n in study.clicked}
    if study.plan is SMALL:
        clicks = [study.clicks(n) for n in study.clicked]
        return write_quality(study.folder, clicks, folds, study.seeds)
    settings = {n: {"options": " ".join(study.plan.runs[n])} for n in study.runs}
    return write_real(study.folder, folds, settings)


def draftrec(*words: object) -> int:
    """Run a command as a user would; anything but 0, and 1 of a gate, ends the study."""
    program = shutil.which("draftrec") or sys.exit("install the project first: pip install -e .")
    line = [program, *map(str, words)]
    note("$ draftrec " + " ".join(line[1:]))
    code = subprocess.run(line, check=False).returncode
    if code not in (0, 1 if words[0] == "compare" else 0):
        sys.exit(code)
    return code


STEPS = {
    step.__name__: step
    for step in (others, texts, vectors, clicks, compare, tune, speed, result)
}  # fmt: skip


def main() -> None:
    """One step, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "all"])
    parser.add_argument("--target", choices=PLANS, default="profile-lm")
    parser.add_argument("--model", type=Path, help="the real target's folder")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", default=(), help="of the runs, the baseline with them")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tuned", type=int, default=24, help="records of the frontier")
    parser.add_argument("--timed", type=int, default=32, help="records of each side's speed")
    args = parser.parse_args()
    plan = PLANS[args.target]
    model = args.model or (SHARED / "models/profile-lm" if plan is SMALL else None)
    if model is None:
        parser.error("--target smollm2 needs --model, the folder of SmolLM2-135M-Instruct")
    folder = args.folder or Path("quality-study" if plan is SMALL else "quality-smollm2")
    counts = (args.seeds, args.workers, args.tuned, args.timed)
    study = Study(plan, model, folder, tuple(args.only), *counts)
    for name in STEPS if args.step == "all" else [args.step]:
        STEPS[name](study)


if __name__ == "__main__":
    main()
