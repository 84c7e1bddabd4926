"""Does relaxed verification cost quality? MovieLens-100K: histories, texts, vectors, click models.

    python benchmarks/quality.py all|texts|vectors|clicks|compare|tune|result [--folder DIR]

Every step calls the command that a user would call, goes on where it was interrupted, and leaves
its files in the folder (they hold texts, so they are no part of the repository). The last step sums
them up as the result. Texts are the small real model's: it writes like its teachers but knows no
facts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import SHARED, note
from quality_data import COLUMNS, RATINGS, Files, part_users, write_inputs
from quality_result import write_quality

from draftrec.data.events import FOLDS

MODEL = SHARED / "models/profile-lm"
SIDES = ("users", "movies")
_RELAXED = ("--accept", "relaxed", "--top-k", "2", "--min-prob", "0.1")
_DRAFTED = ("--draft", "pool", "--budget", "16", "--batch-size", "8")
#: How each run writes. `loose` is the planted fault that the gate has to find.
RUNS = {
    "baseline": ("--draft", "none", "--batch-size", "32"),
    "strict": _DRAFTED,
    "relaxed": (*_DRAFTED, *_RELAXED),
    "capped": (*_DRAFTED, *_RELAXED, "--max-deviations", "4", "--max-loss", "4"),
    "loose": (*_DRAFTED, "--accept", "relaxed", "--top-k", "50", "--min-prob", "0"),
}
MODELS = ("din", "dcnv2", "deepfm", "autoint")
ADAPTORS = ("moe", "hea", "mlp", "contrastive")
#: Runs whose vectors feed click models; strict ones are the baseline's, which is checked, and the
#: planted fault has to be found in the texts alone.
CLICKED = ("baseline", "relaxed", "capped")
#: What is trained on every split by user.
FOLD_MODELS, FOLD_ADAPTORS = ("din", "dcnv2", "deepfm"), ("moe", "mlp")


@dataclass(frozen=True, slots=True)
class Study:
    """Where everything lies."""

    folder: Path
    seeds: int
    workers: int
    tuned: int

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

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


def texts(study: Study) -> None:
    """All runs, users and movies; a run has one pool per side, which grows from nothing."""
    files = write_inputs(study.inputs)
    for name, settings in RUNS.items():
        for side, records in zip(SIDES, (files.users, files.movies), strict=True):
            where = ("--model", MODEL, "--output", study.run(name, side))
            more = ("--max-new-tokens", 320, "--shard-size", 128)
            draftrec("generate", records, *where, *settings, *more)


def vectors(study: Study) -> None:
    """Texts to vectors, by the small encoder that needs no download."""
    for name in RUNS:
        for side in SIDES:
            output = study.vectors(name, side)
            if not output.exists():
                output.parent.mkdir(parents=True, exist_ok=True)
                run = study.run(name, side)
                draftrec("encode", run, "--encoder", "minilm", "--output", output)


def clicks(study: Study) -> None:
    """Click models without knowledge, and with the vectors of each run: several seeds on one split,
    and one seed on each of ten splits, which together test every user."""
    write_inputs(study.inputs)
    for name in CLICKED:
        train(study, name, study.clicks(name), (MODELS, ADAPTORS, study.seeds, 0))
    for fold in range(FOLDS):
        for name in CLICKED:
            train(study, name, study.folds(name, fold), (FOLD_MODELS, FOLD_ADAPTORS, 1, fold))


def train(study: Study, name: str, output: Path, what: tuple[Any, ...]) -> None:
    """One call of `draftrec ctr`; the baseline's has the models without knowledge, too."""
    models, adaptors, seeds, fold = what
    items = Files.in_folder(study.inputs).items
    data = (RATINGS, *COLUMNS, "--items", items, "--item-columns", "genres")
    users, movies = (study.vectors(name, side) for side in SIDES)
    knowledge = ("--user-vectors", users, "--item-vectors", movies)
    adaptors = ("none", *adaptors) if name == "baseline" else adaptors
    which = [w for m in models for w in ("--model", m)]
    which += [w for a in adaptors for w in ("--adaptor", a)]
    more = ("--seeds", seeds, "--fold", fold, "--workers", study.workers)
    draftrec("ctr", *data, *knowledge, *which, *more, "--output", output)


def compare(study: Study) -> None:
    """Texts of both sides and click models under the default limits: a report per side."""
    files = write_inputs(study.inputs)
    for side, prompts in zip(SIDES, (files.users, files.movies), strict=True):
        runs = [f"{name}={study.run(name, side)}" for name in RUNS]
        vectors = [w for n in RUNS for w in ("--vectors", f"{n}={study.vectors(n, side)}")]
        clicks = [w for n in CLICKED for w in ("--ctr", f"{n}={study.clicks(n)}")]
        titles = ("--titles", files.titles, "--prompts", prompts)
        draftrec("compare", *runs, *vectors, *clicks, *titles, "--output", study.report(side))


def tune(study: Study) -> None:
    """The frontier of speed and quality: rules and their settings on some users, with a pool of the
    texts of the others."""
    files = write_inputs(study.inputs)
    records, others = study.inputs / "tuned.jsonl", study.folder / "others.jsonl"
    part_users(files.users, study.run("baseline", "users"), records, others)
    pool = study.folder / "pool"
    if not pool.exists():
        draftrec("pool", "build", others, "--tokenizer", MODEL, "--output", pool)
    output = ("--output", study.folder / "chosen.yaml", "--report", study.folder / "tune")
    more = ("--batch-size", 4, "--max-new-tokens", 320)
    grid = ("--budgets", 16, "--sample", study.tuned, "--rounds", 2)
    draftrec("tune", records, "--model", MODEL, "--pool", pool, *more, *grid, *output)


def result(study: Study) -> None:
    """Sum up."""
    folds = {n: [study.folds(n, fold) for fold in range(FOLDS)] for n in CLICKED}
    clicks = [study.clicks(n) for n in CLICKED]
    write_quality(study.folder, clicks, folds, study.seeds)


def draftrec(*words: object) -> int:
    """Run a command as a user would; anything but 0, and 1 of a gate, ends the study."""
    program = shutil.which("draftrec") or sys.exit("install the project first: pip install -e .")
    line = [program, *map(str, words)]
    note("$ draftrec " + " ".join(line[1:]))
    code = subprocess.run(line, check=False).returncode
    if code not in (0, 1 if words[0] == "compare" else 0):
        sys.exit(code)
    return code


STEPS = {step.__name__: step for step in (texts, vectors, clicks, compare, tune, result)}


def main() -> None:
    """One step, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "all"])
    parser.add_argument("--folder", type=Path, default=Path("quality-study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tuned", type=int, default=24, help="records of the frontier")
    args = parser.parse_args()
    study = Study(args.folder, args.seeds, args.workers, args.tuned)
    for name in STEPS if args.step == "all" else [args.step]:
        STEPS[name](study)


if __name__ == "__main__":
    main()
