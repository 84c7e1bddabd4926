# %% [markdown]
# # From item vectors to a service
#
# You have vectors of your items (of texts, pictures, or a retrieval model) and who took what. The
# vectors become semantic ids, a model learns to write the id of what comes next, a smaller one
# learns to draft for it, and a service answers. All of it runs on a CPU in a few minutes.
#
# Needs `pip install "draftrec[train,serve]"`, or `pip install -e ".[train,serve]"` in a checkout.

# %%
import csv
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORK = Path("work")  # all that is written
WORK.mkdir(exist_ok=True)


def draftrec(line: str) -> None:
    """Run a command as you would in a shell."""
    print("$ draftrec", line, flush=True)
    command = [sys.executable, "-m", "draftrec", *line.split()]
    if subprocess.run(command, cwd=WORK).returncode not in (0, 3):  # 3: rows left out, listed
        raise SystemExit("see what it said above")


# %% [markdown]
# ## What you bring
#
# `vectors.parquet` has a row per item, `item` and `vector`; `events.csv` a row per interaction.
# Here both are invented: twenty kinds of articles, ten of each, and people who mostly go on with
# the kind they are at, in the order in which its articles follow each other. Put your own in their
# place.

# %%
random = np.random.default_rng(0)
KINDS, EACH, PEOPLE = 20, 10, 400
items = [f"SKU-{kind:02d}{place}" for kind in range(KINDS) for place in range(EACH)]
centres = np.repeat(random.normal(size=(KINDS, 16)), EACH, axis=0)
vectors = (centres + random.normal(0, 0.5, centres.shape)).astype(np.float32)
pq.write_table(pa.table({"item": items, "vector": list(vectors)}), WORK / "vectors.parquet")

with (WORK / "events.csv").open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["user_id", "item_id", "timestamp"])
    for person in range(PEOPLE):
        kind, place = random.integers(KINDS), random.integers(EACH)
        for moment in range(8):
            table.writerow([f"person-{person}", items[kind * EACH + place], moment])
            if random.random() < 0.2:
                kind = random.integers(KINDS)
            place = (place + 1) % EACH

# %% [markdown]
# ## Semantic ids, and sequences
#
# Items that are alike share the first tokens of their ids. A person's last item is to test, the one
# before it to validate, the others to train.

# %%
draftrec("sid fit vectors.parquet --levels 3 --codes 16 --output sids.parquet")
draftrec("sequences events.csv --output sequences.parquet --overwrite")
for row in pq.read_table(WORK / "sids.parquet").slice(0, 3).to_pylist():
    print(row)

# %% [markdown]
# ## The model that recommends, and the one that drafts for it
#
# `teach` writes down what the target thinks in training contexts, `align` trains the draft on it.
# The draft changes how long an answer takes, never which one it is.

# %%
draftrec(
    "genrec fit sequences.parquet --sids sids.parquet --preset small --epochs 4 "
    "--batch-tokens 1024 --recall-users 50 --output target"
)
draftrec(
    "genrec teach target sequences.parquet --sids sids.parquet --beams 10 --per-user 1 "
    "--output teacher"
)
draftrec(
    "genrec align teacher --target target --objective beamkd --preset tiny --epochs 2 "
    "--output draft"
)

# %% [markdown]
# ## Recommendations for everybody
#
# `evaluate` compares the lists with what people took last.

# %%
draftrec(
    "genrec recommend sequences.parquet --target target --sids sids.parquet --draft draft -k 10 "
    "--output top10.parquet --overwrite"
)
draftrec("genrec evaluate top10.parquet sequences.parquet -k 1 5 10")
for row in pq.read_table(WORK / "top10.parquet").slice(0, 2).to_pylist():
    print(row["user"], row["items"][:5])

# %% [markdown]
# ## A service
#
# Settings, all of them explained in `deploy/serve.example.yaml`; then one request. Choose another
# port if something else listens there.

# %%
PORT = 8123
(WORK / "serve.yaml").write_text(
    "recommend:\n"
    "  target: target\n"
    "  draft: draft\n"
    "  sids: sids.parquet\n"
    "  sequences: sequences.parquet\n"
    "  settings: {k: 10}\n"
)
command = [sys.executable, "-m", "draftrec", "serve", "--config", "serve.yaml", "--port", str(PORT)]
# On its standard output it says a line of JSON for every request, which we do not need here.
service = subprocess.Popen(command, cwd=WORK, stdout=subprocess.DEVNULL)

# %%
address = f"http://127.0.0.1:{PORT}"
try:
    while service.poll() is None:  # it loads the models, and is ready in a few seconds
        try:
            urllib.request.urlopen(address + "/readyz").close()
            break
        except OSError:
            time.sleep(0.5)
    question = {"history": items[:3], "k": 5}
    request = urllib.request.Request(
        address + "/v1/recommend",
        json.dumps(question).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        for found in json.load(answer)["items"]:
            print(found)
finally:
    service.terminate()
    service.wait()
