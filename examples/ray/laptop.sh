#!/usr/bin/env bash
# Two workers on this machine, on invented readers and the small model that comes with the package.
# Needs: pip install "draftrec[ray]". Takes about a minute on two cores, most of it for starting up.
set -euo pipefail
work="${1:-draftrec-ray}"
mkdir -p "$work"

python - "$work/readers.jsonl" <<'PY'
import json, sys
from draftrec.demo.shop import readers

with open(sys.argv[1], "w") as file:
    for record in readers()[:200]:
        file.write(json.dumps(record) + "\n")
PY
model="$(python -c 'from draftrec.demo.shop import demo_model_path as m; print(m())')"

draftrec generate "$work/readers.jsonl" --model "$model" --template kar --output "$work/run" \
  --max-new-tokens 48 --shard-size 16 --engine ray --workers 2
draftrec encode "$work/run" --encoder hashed:64 --output "$work/vectors.parquet" \
  --engine ray --workers 2
