"""What the plan for many machines is made of: every number with its unit, its kind and its source.

Measured numbers come from `benchmarks/results/`, on one machine without a GPU, or were counted in
this code. Estimated ones are of draftrec's passes on a GPU: kernels were counted, their times were
not measured. Published ones are other people's measurements or data sheets. Settings are draftrec's
own. Assumed ones are none of these: change them for your cluster.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import RESULTS

Kind = Literal["measured", "estimated", "published", "assumed", "setting"]
Way = Literal["frozen", "eager"]


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
    """Weights in bfloat16, bytes of keys and values per token, layers."""

    name: str
    parameters: float
    kv_bytes: float
    layers: int
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
    "Llama 3.1 8B", 8.03e9, 131_072, 32, "model card and config.json: 32 layers, 8 KV heads of 128"
)
QWEN_32B = Model(
    "Qwen2.5 32B", 32.5e9, 262_144, 64, "model card and config.json: 64 layers, 8 KV heads of 128"
)

LLAMA_7B = Model(
    "Llama 7B", 6.74e9, 524_288, 32, "model card and config.json: 32 layers, 32 KV heads of 128"
)
LLAMA_1B = Model(
    "Llama 3.2 1B", 1.24e9, 32_768, 16, "model card and config.json: 16 layers, 8 KV heads of 64"
)
QWEN_HALF = Model(
    "Qwen2.5 0.5B", 0.494e9, 12_288, 24, "model card and config.json: 24 layers, 2 KV heads of 64"
)

#: Estimated milliseconds of plain steps on an H100, 600 tokens of context: texts at once, lowest
#: and highest by eager passes, then by frozen ones. Kernels were counted in this code (1,370 to
#: 1,480 in a step of 32 layers), their times are other people's on such cards.
ESTIMATES: tuple[tuple[Model, int, tuple[float, float], tuple[float, float]], ...] = (
    (LLAMA_7B, 1, (11.0, 14.0), (5.2, 5.5)),
    (LLAMA_7B, 8, (12.0, 15.0), (6.0, 6.4)),
    (LLAMA_7B, 32, (14.0, 18.0), (8.5, 9.5)),
    (LLAMA_1B, 1, (5.5, 7.5), (1.2, 1.4)),
    (QWEN_HALF, 1, (8.0, 10.0), (0.8, 1.0)),
)

PUBLISHED: dict[str, Input] = {
    "entities": Input(100e6, "texts", "assumed", "the question"),
    "bandwidth_share": Input(
        0.82, "of the data sheet's", "estimated",
        "a copy reaches 0.91 of an H100's, products 0.9 of a copy; the middle of the estimates of "
        "frozen steps, together with the next line",
    ),
    "pass_us": Input(
        450, "us per pass", "estimated", "frozen: small kernels that read little, and the host"
    ),
    "launch_us": Input(
        9.0, "us per kernel", "estimated",
        "eager: Python and the launch, which a GPU waits for; the middle of the estimates",
    ),
    "kernels_per_layer": Input(
        44, "kernels", "measured", "counted in this code: 1,370 to 1,480 for 32 layers"
    ),
    "eager_us": Input(
        110, "us per text and pass", "estimated", "eager: what batches add, up to 32 texts at once"
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
    live = _result(folder, "knowledge-live")["live"]["greedy_batch_16"]
    calls = live["relaxed"]["tokens_per_call"] / live["strict"]["tokens_per_call"]
    own = _result(folder, "scaling-measured")
    host = {
        f"host_us_{nodes}": Input(
            work["us_per_sequence"]["median"], "us per sequence and pass", "measured",
            f"scaling-measured.json, host, {nodes} draft nodes",
        )
        for nodes, work in own["host"]["nodes"].items()
    }  # fmt: skip
    relaxed = Input(
        calls, "strict's tokens per call", "measured", "knowledge-live.json, greedy, batch 16"
    )
    pools = _of_pools(_result(folder, "pool-scale")["sizes"])
    driver = _of_driver(own["driver"])
    return PUBLISHED | {"relaxed_calls": relaxed} | pools | driver | host


def _of_pools(sizes: dict[str, Any]) -> dict[str, Input]:
    grown, closed = sizes["10M"]["growth"], sizes["100M"]
    fresh = "pool-scale.json, 10M: fresh texts one by one, sorted in from time to time"
    files = "pool-scale.json, 100M"
    found = {
        "learn_us": (grown["one_by_one_with_settling_us_per_token"], "us", fresh),
        "grown_bytes": (grown["one_by_one_bytes_per_token"], "bytes", fresh),
        "file_bytes": (closed["file_bytes_per_token"], "bytes", files),
        "build_us": (closed["build_us_per_token"], "us", files),
    }
    return {k: Input(v, f"{u} per token", "measured", src) for k, (v, u, src) in found.items()}


def _of_driver(driver: dict[str, Any]) -> dict[str, Input]:
    reading = driver["read_us_per_record"]
    manifest = {int(n): m["ms"] for n, m in driver["manifest_by_shards"].items()}
    most = max(manifest)
    found = {
        "read_us": (reading["rendered"], "reading JSON lines, rendering KAR's template"),
        "read_ready_us": (reading["ready"], "reading Parquet with prompts"),
        "receive_us": (driver["receive_us_per_text"], "unpickling a shard's texts"),
        "write_us": (driver["write_us_per_text"], "writing a shard"),
        "fetch_us": (driver["fetch_us_per_text"], "a worker reads a finished shard"),
    }
    source = "scaling-measured.json, driver: "
    times = {
        name: Input(value["median"], "us per text", "measured", source + what)
        for name, (value, what) in found.items()
    }
    return times | {
        "file_bytes_per_text": Input(
            driver["bytes_per_text"], "bytes per text", "measured", source + "a shard's files"
        ),
        "manifest_us": Input(
            1e3 * manifest[most]["median"] / most, "us per finished shard and commit", "measured",
            f"{source}a manifest of {most:,} shards",
        ),
    }  # fmt: skip


def read_acceptance(folder: Path = RESULTS) -> dict[str, Any]:
    """Tokens per step by trace, pool and nodes, as `scaling_measured.py` counted them."""
    return _result(folder, "scaling-measured")["acceptance"]


def _result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())
