"""What the plan for many machines is made of: every number with its unit, its kind and its source.

Measured numbers come from `benchmarks/results/`, on one machine without a GPU. Published ones are
other people's measurements or data sheets. Settings are draftrec's own. Assumed ones are none of
these: change them for your cluster.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import RESULTS

Kind = Literal["measured", "published", "assumed", "setting"]


@dataclass(frozen=True, slots=True)
class Input:
    """One number."""

    value: float
    unit: str
    kind: Kind
    source: str


@dataclass(frozen=True, slots=True)
class Gpu:
    """Bytes, bytes per second, dense bfloat16 operations per second, dollars per hour."""

    name: str
    memory: float
    bandwidth: float
    flops: float
    price: float
    source: str


@dataclass(frozen=True, slots=True)
class Model:
    """Weights in bfloat16, and bytes of keys and values per token."""

    name: str
    parameters: float
    kv_bytes: float
    source: str


@dataclass(frozen=True, slots=True)
class Workload:
    """Tokens of a prompt, of which the first `shared` are every prompt's, and of a text; `trace`:
    the recorded texts whose acceptance stands for them."""

    prompt: int = 600
    shared: int = 0
    text: int = 250
    trace: str = "gear_ml1m_user"


H100 = Gpu(
    "H100 SXM 80 GB", 80e9, 3.35e12, 989e12, 2.69,
    "NVIDIA data sheet; price: jarvislabs.ai/blog/h100-vs-a100, April 2026, on demand",
)  # fmt: skip
A100 = Gpu(
    "A100 SXM 80 GB", 80e9, 2.039e12, 312e12, 1.49,
    "NVIDIA data sheet; price: jarvislabs.ai/blog/h100-vs-a100, April 2026, on demand",
)  # fmt: skip

LLAMA_8B = Model(
    "Llama 3.1 8B", 8.03e9, 131_072, "model card and config.json: 32 layers, 8 KV heads of 128"
)
QWEN_32B = Model(
    "Qwen2.5 32B", 32.5e9, 262_144, "model card and config.json: 64 layers, 8 KV heads of 128"
)

PUBLISHED: dict[str, Input] = {
    "entities": Input(100e6, "texts", "assumed", "the question"),
    "bandwidth_share": Input(
        0.75, "of the data sheet's", "published",
        "plain steps of Llama 3.1 8B in vLLM at batch 1: 0.77 on an A100 (johnmusgrave.com, "
        "75 tokens/s), 0.74 on an H100 (yobitelcomm.github.io/bench, 6.48 ms)",
    ),
    "flops_share": Input(
        0.5, "of the data sheet's", "assumed", "large matrix products usually reach 0.5 to 0.7"
    ),
    "failures_per_gpu_day": Input(
        419 / (16_384 * 54), "failures", "published",
        "The Llama 3 Herd of Models (2407.21783): 419 unexpected interruptions in 54 days on "
        "16,384 H100s",
    ),
    "bad_failures_per_gpu_day": Input(
        24 / 7.5 / 992, "failures", "published",
        "OPT-175B's 7.5 hours between interruptions on 992 A100s (glennklockwood.com)",
    ),
    "gpus_per_node": Input(8, "GPUs", "published", "DGX H100 and A100"),
    "node_memory": Input(2e12, "bytes", "published", "DGX H100 data sheet"),
    "node_network": Input(12.5e9, "bytes per second", "assumed", "one link of 100 Gb/s"),
    "pool_tokens": Input(
        (2 << 30) / 46, "tokens", "setting",
        "pool/store.py: 2 GiB at 46 bytes per token, for an index of all and one of groups",
    ),
    "reload_seconds": Input(120, "seconds", "assumed", "a worker starts and loads 16 GB"),
    "repair_seconds": Input(1800, "seconds", "assumed", "a spare node takes a failed one's place"),
    "driver_restart_seconds": Input(900, "seconds", "assumed", "someone or something starts it"),
    "slow_workers": Input(0.02, "of the workers", "assumed", "clocks, thermals, noisy hosts"),
    "slowness": Input(1.2, "times as long", "assumed", "for those"),
}  # fmt: skip


def read_inputs(folder: Path = RESULTS) -> dict[str, Input]:
    """All single numbers by name: the table above and what the results of benchmarks say."""
    scale = _result(folder, "pool-scale")["sizes"]["10M"]
    largest = _result(folder, "pool-scale")["sizes"]["100M"]
    live = _result(folder, "knowledge-live")["live"]["greedy_batch_16"]
    own = _result(folder, "scaling-measured")
    driver, host = own["driver"], own["host"]["nodes"]
    manifest = {int(n): m for n, m in driver["manifest_by_shards"].items()}
    most = max(manifest)
    calls = live["relaxed"]["tokens_per_call"] / live["strict"]["tokens_per_call"]
    found = {
        "relaxed_calls": (calls, "strict's tokens per call", "knowledge-live.json, batch 16"),
        "learn_us": (
            scale["growth"]["one_by_one_with_settling_us_per_token"], "us per token",
            "pool-scale.json, 10M: fresh texts one by one, sorted in from time to time",
        ),
        "grown_bytes": (
            scale["growth"]["one_by_one_bytes_per_token"], "bytes per token",
            "pool-scale.json, 10M: the same",
        ),
        "file_bytes": (
            largest["file_bytes_per_token"], "bytes per token", "pool-scale.json, 100M",
        ),
        "build_us": (largest["build_us_per_token"], "us per token", "pool-scale.json, 100M"),
        "read_us": (
            driver["read_us_per_record"]["rendered"]["median"], "us per record",
            "scaling-measured.json, driver: JSON lines, KAR's template",
        ),
        "read_ready_us": (
            driver["read_us_per_record"]["ready"]["median"], "us per record",
            "scaling-measured.json, driver: Parquet with prompts",
        ),
        "fetch_us": (
            driver["fetch_us_per_text"]["median"], "us per text",
            "scaling-measured.json, driver: a finished shard read by a worker",
        ),
        "receive_us": (
            driver["receive_us_per_text"]["median"], "us per text",
            "scaling-measured.json, driver: unpickling a shard's texts",
        ),
        "write_us": (
            driver["write_us_per_text"]["median"], "us per text", "scaling-measured.json, driver",
        ),
        "file_bytes_per_text": (
            driver["bytes_per_text"], "bytes per text", "scaling-measured.json, driver",
        ),
        "manifest_us": (
            1e3 * manifest[most]["ms"]["median"] / most, "us per finished shard and commit",
            f"scaling-measured.json, manifest of {most:,} shards",
        ),
    }  # fmt: skip
    for nodes, work in host.items():
        found[f"host_us_{nodes}"] = (
            work["us_per_sequence"]["median"], "us per sequence and pass",
            f"scaling-measured.json, host, {nodes} draft nodes",
        )  # fmt: skip
    measured = {k: Input(float(v), unit, "measured", src) for k, (v, unit, src) in found.items()}
    return PUBLISHED | measured


def read_acceptance(folder: Path = RESULTS) -> dict[str, Any]:
    """Tokens per step by trace, pool and nodes, as `scaling_measured.py` counted them."""
    return _result(folder, "scaling-measured")["acceptance"]


def _result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())
