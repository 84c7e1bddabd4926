#!/usr/bin/env bash
# One machine with several GPUs: a worker, and a copy of the model, on each.
#
#   examples/ray/many_gpus.sh users.parquet path/or/hub-id run
#
# Run it again after whatever ended it: it goes on where it was. GPUS=4 takes fewer GPUs.
set -euo pipefail
records="$1" model="$2" output="$3"
gpus="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"

# A pool to begin with: the first shards of many workers have no others' texts to draft from yet.
if [[ ! -d "$output-pool" ]]; then
  draftrec generate "$records" --model "$model" --template kar --output "$output-first" \
    --limit 2000 --save-pool "$output-pool"
fi
draftrec generate "$records" --model "$model" --template kar --output "$output" \
  --pool "$output-pool" --shard-size 512 \
  --engine ray --workers "$gpus" --gpus-per-worker 1
