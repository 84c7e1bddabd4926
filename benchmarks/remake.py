"""Remakes the committed results, all or some, in order: `benchmarks/run` calls it.

    benchmarks/run --dry-run            # what would run, what it needs, how long it takes
    benchmarks/run exactness memory     # these results only
    benchmarks/run --small              # seconds each, tiny inputs, a temporary folder: for CI

Results name a commit, so a run with local changes is refused (`--small` may have some).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, SHARED, git_state

_MODELS = SHARED / "models"
_SMOLLM2 = str(_MODELS / "smollm2")
_OURS = (_MODELS / "profile-lm", SHARED / "data" / "profiles.parquet")
_TEXTS = (_MODELS / "profile-lm", SHARED / "data" / "texts")
_REAL = (_MODELS / "smollm2",)
_BEAUTY = (SHARED / "data" / "items",)


@dataclass(frozen=True)
class Job:
    """A command of benchmarks/ and the results that it writes.

    `minutes`: of two processor cores, roughly. `needs`: what is not in the repository; `by_hand`:
    why somebody has to prepare it. `small`: arguments with which it takes seconds, if there are.
    """

    command: str
    results: tuple[str, ...]
    minutes: int
    needs: tuple[Path, ...] = ()
    by_hand: str = ""
    small: str | None = None

    def missing(self) -> list[str]:
        """What the command cannot do without and does not find."""
        return [str(path) for path in self.needs if not path.exists()]


JOBS = (
    # What is exact, first: nothing else is worth measuring before.
    Job("exactness.py --passes auto eager frozen", ("exactness",), 25, _OURS),
    Job("exactness.py --part bits --max-new-tokens 128", ("exactness-bits",), 20),
    Job(
        "exactness.py --part bits --max-new-tokens 128 --settings pass_=frozen",
        ("exactness-bits-frozen",),
        40,
    ),
    Job("exactness.py --part bits-cost", ("exactness-bits-cost",), 5),
    Job("controls.py", ("controls-exactness", "controls-costs"), 15, _OURS),
    Job("transformers_generate.py", ("transformers",), 4, _OURS),
    Job("beam_exactness.py", ("beam-exactness",), 10, small="--cases 20"),
    Job("beam_sampling.py", ("beam-sampling",), 1, small="--users 200"),
    Job("kill_resume.py", ("kill-resume",), 15),
    # Speed.
    Job("first_job.py --part bookshop", ("first-job-bookshop", "first-job-bookshop-penalty"), 40),
    Job(f"first_job.py --part movielens --model {_SMOLLM2} --users 96 --chunk 32 --plain-every 2",
        # Two or the others, as the processor is.
        ("first-job-movielens", "first-job-movielens-penalty", "first-job-movielens-tiles",
         "first-job-movielens-penalty-tiles"), 60, _REAL),
    Job("knowledge.py", ("knowledge-replay", "knowledge-live"), 90, _OURS),
    Job("sampled.py", ("sampled",), 10, _OURS),
    Job(f"steps.py --model {_SMOLLM2}", ("steps",), 12, _REAL),
    Job(f"steps.py --model {_SMOLLM2} --no-random --context 900 --batch 1 8 16", ("steps-900",),
        12, _REAL),
    # One or the other, as the processor is.
    Job("packed_weights.py", ("packed-weights", "packed-weights-tiles"), 3),
    Job("host_time.py", ("host-time",), 2, small="--cases 4x4 --rounds 3"),
    Job("prompts.py --texts 64", ("prompts",), 10),
    Job(f"structured.py --model {_SMOLLM2}", ("structured",), 90, _REAL),
    Job("encoders.py", ("encoders",), 3),
    # Drafts.
    Job("pool.py --texts 60", ("pool-rivals",), 10, _TEXTS,
        small="--traces synthetic --engines all pool --texts 4 --warm 20 --budgets 8 --repeats 1 "
        "--in-process"),
    Job("pool.py --texts 6 --warm 300 --engines group trie trie-group arctic pool "
        "--name pool-published", ("pool-published",), 180, _TEXTS),
    Job("pool.py --part refresh", ("pool-refresh",), 5, _TEXTS),
    Job("pool.py --part groups", ("pool-groups",), 5, _TEXTS),
    Job("pool_scale.py", ("pool-scale",), 10, small="--millions 0.03 --budgets 8"),
    Job("pool_workers.py", ("pool-workers",), 10, _TEXTS),
    *(Job(f"drafter.py measure --model {_SMOLLM2} --work WORK --side {options}",
          (name,), 30, _REAL, "WORK: what `drafter.py prepare` and `fit` have made, hours")
      for name, options in (
          ("drafter-smollm2-item", "item --texts 500 --batch 1 --budgets auto --reported 12"),
          ("drafter-smollm2-item-1000", "item --texts 1000 --batch 1 --budgets auto 16 "
           "--reported 12 --name smollm2-item-1000"),
          ("drafter-smollm2-item-batch8", "item --texts 500 --batch 8 --budgets auto "
           "--name smollm2-item-batch8"),
          ("drafter-smollm2-item-nodes16", "item --texts 500 --batch 8 --budgets 16 "
           "--reported 8 --rounds 1 --name smollm2-item-nodes16"),
          ("drafter-smollm2-user-nodes16", "user --texts 1000 --batch 8 --budgets 16 "
           "--reported 96 --rounds 1 --untimed --dtype bfloat16 --name smollm2-user-nodes16"),
          ("drafter-smollm2-user-sampled", "user --texts 1000 --written-at 0.7 --temperatures 0.7 "
           "--batch 8 --budgets 16 --reported 96 --rounds 1 --untimed --dtype bfloat16 "
           "--name smollm2-user-sampled"))),
    Job(f"drafter.py measure --model {_MODELS / 'profile-lm'} --work WORK --side user --profiles "
        "--texts 500 --max-new-tokens 256 --reported 300 --batch 8 --budgets 16 --rounds 1 "
        "--untimed --name profile-lm-user", ("drafter-profile-lm-user",), 20, _OURS,
        "WORK: what `drafter.py prepare` and `fit` have made with the same options, an hour"),
    Job(f"drafter.py measure --model {_MODELS / 'gemma3'} --work WORK --side item --texts 500 "
        "--batch 8 --budgets 16 --reported 96 --rounds 1 --untimed --name gemma3-item",
        ("drafter-gemma3-item",), 60, (_MODELS / "gemma3",),
        "WORK: what `drafter.py prepare` and `fit` have made with the same options, an hour"),
    *(Job(f"live.py --model {_SMOLLM2} --work WORK {options}", (f"live-smollm2-{side}",), 30,
          _REAL, "WORK: what `drafter.py prepare` and `fit` have made, hours")
      for side, options in (("user", "--side user"), ("item", "--side item"))),
    Job(f"live.py --model {_SMOLLM2} --work WORK --side item --batch 1 16 --temperatures 0 "
        "--prompts 8 --rounds 2 --dtype float32 --name smollm2-item-avx2",
        ("live-smollm2-item-avx2",), 20, _REAL,
        "WORK: what `drafter.py prepare` has made, hours"),
    Job(f"small_drafter.py RUN --model {_SMOLLM2} --head HEAD --work WORK", ("drafter-small",), 60,
        _REAL, "RUN, HEAD: what `drafter.py prepare` and `fit` have made; WORK: a folder"),
    Job("drafter.py plan", ("drafter-plan",), 1),
    Job(f"recycling.py RUN --model {_SMOLLM2}", ("recycling",), 10, _REAL,
        "RUN: a folder that `draftrec generate` has written"),
    # Jobs, services, other engines.
    Job("memory.py", ("memory",), 5),
    Job("ray_jobs.py", ("ray",), 15),
    Job("load.py --before cbf210d", ("load",), 14),
    Job("vllm_proposer.py", ("vllm",), 15, _OURS, "vLLM, in an environment of its own"),
    # Items.
    Job("beauty_table.py", ("beauty-table",), 1, _BEAUTY),
    Job("item_baseline.py", ("item-baseline",), 10, _BEAUTY),
    Job("item_trie.py", ("item-trie",), 5, small="--tiny"),
    *(Job(f"genrec.py --target TARGET --draft NAME=DRAFT {options}", (name,), 30, _BEAUTY,
          "TARGET, DRAFT: what `draftrec genrec fit` and `align` have trained")
      for name, options in (
          ("genrec-beauty", "--timed 0 --engines strict -k 20 10 5 3 1 "
           "--widths 40,120,120 40,240,240"),
          ("genrec-beauty-timed", "--rounds 5 --whole --name genrec-beauty-timed"))),
    *(Job("genrec.py --target GROWN --draft NAME=DRAFT --dtype bfloat16 --engines auto "
          f"--whole --rounds 5 {options} --name {name}", (name,), 15, _BEAUTY,
          "GROWN: the target in a large Llama by `python benchmarks/grown.py TARGET GROWN`")
      for name, options in (
          ("genrec-grown-1", "--batch 1 --timed 32 --latency 16 -k 1 3 5 20"),
          ("genrec-grown-8", "--batch 8 --timed 32 -k 1 3 5 20"))),
    *(Job(f"genrec.py --target ADAPTED --draft NAME=DRAFT --batch 8 {options} "
          f"--name {name}", (name,), 20, _BEAUTY,
          "ADAPTED, DRAFT: a language model with adapters and its draft, by the commands in "
          "benchmarks/README.md, two hours")
      for name, options in (
          ("genrec-lora", "-k 20 --timed 0 --engines strict --limit 48"),
          ("genrec-lora-timed", "-k 5 1 --whole --timed 8 --rounds 3 --engines auto"))),
    Job("blend.py --target TARGET --newer NEWER --check 200", ("blend-beauty",), 15, _BEAUTY,
        "TARGET, NEWER: what `draftrec genrec fit` has trained, without and with --with-valid"),
    Job("blend_items.py --target TARGET --item-model ITEMS --check 200", ("blend-items-beauty",),
        15, _BEAUTY, "TARGET, ITEMS: what `draftrec genrec fit` has trained, without and with "
        "--whole-items"),
    Job("sasrec.py", ("sasrec-beauty",), 20, _BEAUTY),
    *(Job(f"{command} --catalogue ml100k --sequences SEQUENCES --sids SIDS --item-item SETTINGS",
          (name,), 10, by_hand="SEQUENCES, SIDS, SETTINGS, TARGET, ITEMS: made of MovieLens-100K's "
          "ratings by the commands in benchmarks/README.md")
      for name, command in (
          ("blend-items-ml100k", "blend_items.py --target TARGET --item-model ITEMS --newer NEWER "
           "--newer-item-model NEWER_ITEMS --exclude-seen --check 400"),
          ("sasrec-ml100k", "sasrec.py --unseen --last 100 --batch 16 --epochs 60 --patience 8"))),
    Job("id_schemes.py --catalogue ml100k --sequences SEQUENCES --exclude-seen --scheme SCHEME",
        ("id-schemes-ml100k",), 10, by_hand="SEQUENCES, SCHEME (four of them): made of "
        "MovieLens-100K's ratings and movies by the commands in benchmarks/README.md"),
    # Quality, and what large machines would do.
    Job("quality.py all", ("quality-ml100k",), 120, _OURS),
    Job(f"quality.py all --target smollm2 --model {_SMOLLM2}", ("quality-smollm2",), 300, _REAL),
    Job("scaling_measured.py", ("scaling-measured",), 5, _TEXTS),
    Job("scaling.py", ("scaling",), 1),
)  # fmt: skip


def run(jobs: list[Job], folder: Path | None, *, small: bool) -> list[str]:
    """Run the jobs one after another; what failed, by command. One failure ends no other job."""
    failed = []
    for job in jobs:
        script, *arguments = job.command.split()
        if small:  # of these, what they are told says how large they are
            arguments = (job.small or "").split()
        command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
        if folder is not None and script not in ("packed_weights.py", "quality.py"):
            command += ["--results", str(folder)]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        say = "done" if done.returncode == 0 else f"FAILED ({done.returncode})"
        print(f"{say:12} {time.perf_counter() - start:8.0f} s  {job.command}", flush=True)
        if done.returncode:
            failed.append(job.command)
    return failed


def plan(jobs: list[Job]) -> str:
    """A line for every job, and what they take together."""
    lines = [f"{'minutes':>7}  command"]
    for job in jobs:
        lines.append(
            f"{job.minutes:7d}  benchmarks/{job.command.replace(str(SHARED), '../shared')}"
        )
        lines += [f"{'':9}needs {path}" for path in job.missing()]
        lines += [f"{'':9}by hand: {job.by_hand}"] * bool(job.by_hand)
    ready = [job for job in jobs if not job.by_hand and not job.missing()]
    hours = sum(job.minutes for job in ready) / 60
    lines.append(f"{len(ready)} of {len(jobs)} can run here, about {hours:.1f} hours on two cores")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Choose, show or run, then make the pages anew."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("results", nargs="*", help="names of results; default: all")
    parser.add_argument("--dry-run", action="store_true", help="show what would run")
    parser.add_argument("--small", action="store_true", help="tiny inputs, a temporary folder")
    args = parser.parse_args(argv)
    known = {name for job in JOBS for name in job.results}
    if unknown := sorted(set(args.results) - known):
        parser.error(f"no result is named {unknown[0]}; known are {', '.join(sorted(known))}")
    jobs = [job for job in JOBS if not args.results or set(args.results) & set(job.results)]
    if args.small:
        jobs = [job for job in jobs if job.small is not None]
    if args.dry_run:
        print(plan(jobs))
        return 0
    if args.small:
        with tempfile.TemporaryDirectory() as folder:
            return bool(run(jobs, Path(folder), small=True))
    if git_state()["dirty"] is not False:
        parser.error("results name a commit: commit or stash your changes, or look with --dry-run")
    print(plan(jobs), flush=True)
    ready = [job for job in jobs if not job.by_hand and not job.missing()]
    failed = run(ready, None, small=False)
    for page in ("tables.py", "scaling_tables.py", "questions.py"):
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / page)], cwd=ROOT, check=True)
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
