"""Questions about one GPU: the best setting with drafts and without, and what it brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from scaling_inputs import (
    A100,
    ESTIMATES,
    H100,
    LLAMA_7B,
    LLAMA_8B,
    QWEN_32B,
    Gpu,
    Input,
    Model,
    Way,
    Workload,
)
from scaling_worker import Drafting, Speed, Worker, drafting_of, relaxed

MODES = ("plain", "strict", "relaxed")
_PROFILES = Workload()
#: Of the data sheet's bandwidth, what a copy reaches on an H100: 3.05 TB/s.
_COPY = 0.91


@dataclass(frozen=True, slots=True)
class Variant:
    """One question about a single GPU. `way`: how passes run; `hidden`: the host works
    while the GPU does; `flops_share`: another one than the inputs'; `slots`, `chunks`: limits of
    the search for the best setting."""

    name: str
    gpu: Gpu = H100
    model: Model = LLAMA_8B
    workload: Workload = _PROFILES
    way: Way = "frozen"
    hidden: bool = False
    flops_share: float | None = None
    slots: tuple[int, ...] | None = None
    chunks: tuple[int, ...] | None = None


#: The question, for a model that leaves a GPU much room and for one that leaves it little.
MAIN = Variant("8B, prompts of 600, texts of 250")
LARGE = Variant("32B, prompts of 600, texts of 250", model=QWEN_32B)
_VARIANTS = (
    MAIN,
    Variant("eager passes", way="eager"),
    Variant("as set by default: 128 slots, 512 prompt rows", slots=(128,), chunks=(512,)),
    Variant("the host's work hidden behind the GPU's", hidden=True),
    Variant("and 0.7 of the operations reached", hidden=True, flops_share=0.7),
    Variant("400 prompt tokens shared by all", workload=Workload(shared=400)),
    Variant("prompts of 2,000", workload=Workload(prompt=2000)),
    Variant("texts as templated as ChatQA's", workload=Workload(trace="chatqa_ml1m_user")),
    Variant("texts about items", workload=Workload(trace="gear_ml1m_item")),
    Variant("one text at a time", slots=(1,)),
    Variant("one text at a time, eager passes", way="eager", slots=(1,)),
    Variant("16 texts at a time", slots=(16,)),
    Variant("16 texts at a time, eager passes", way="eager", slots=(16,)),
    Variant("A100", gpu=A100),
    LARGE,
    Variant("32B, texts as templated as ChatQA's", model=QWEN_32B,
            workload=Workload(trace="chatqa_ml1m_user")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class World:
    """All inputs: numbers, and what was measured of recorded texts."""

    inputs: Mapping[str, Input]
    acceptance: Mapping[str, Any]

    def value(self, name: str) -> float:
        return self.inputs[name].value

    def drafting(self, mode: str, trace: str) -> Drafting:
        """What a mode drafts and what it brings. Traces that were not recorded are the synthetic
        one."""
        found = self.acceptance.get(trace, self.acceptance["synthetic"])
        strict = drafting_of(found, self.inputs)
        return relaxed(strict, self.value("relaxed_calls")) if mode == "relaxed" else strict

    def worker(self, variant: Variant, mode: str) -> Worker:
        drafting = self.drafting(mode, variant.workload.trace)
        if variant.hidden:
            drafting = replace(drafting, host=tuple(0.0 for _ in drafting.host))
        inputs = dict(self.inputs)
        if variant.flops_share:
            inputs["flops_share"] = replace(inputs["flops_share"], value=variant.flops_share)
        return Worker(variant.gpu, variant.model, inputs, variant.workload, drafting, variant.way)

    def best(self, variant: Variant, mode: str) -> Speed:
        """The fastest setting of a mode; plain is the one that drafts nothing."""
        limits: dict[str, Any] = {"nodes": (0,)} if mode == "plain" else {}
        if variant.slots:
            limits["slots"] = variant.slots
        if variant.chunks:
            limits["chunks"] = variant.chunks
        return self.worker(variant, mode).best(**limits)


def checks(world: World) -> list[dict[str, Any]]:
    """Published plain decoding beside what the same arithmetic says of it, in tokens per second."""
    a100 = Gpu("A100 40 GB", 40e9, 1.555e12, 312e12, 0.0, "NVIDIA data sheet")
    v100 = Gpu("V100", 32e9, 0.9e12, 125e12, 0.0, "NVIDIA data sheet")
    qwen = Model("Qwen-7B-Chat", 7.72e9, 524_288, 32, "model card: 32 layers of 4096")
    vllm = "johnmusgrave.com, vLLM 0.23, 1,024 + 128 tokens"
    dare = "2408.05676: 565 GPU-days for 10M texts of 250"
    cases = [
        (a100, LLAMA_8B, Workload(prompt=1024, text=128), 1, 75.0, vllm),
        (a100, LLAMA_8B, Workload(prompt=1024, text=128), 8, 6.6 * 75, vllm),
        (v100, qwen, Workload(), 1, 51.2, dare),
        (A100, LLAMA_7B, Workload(prompt=6, text=200), 1, 104.9, "gpt-fast's README"),
    ]
    plain = replace(world.drafting("plain", "synthetic"), host=(0.0,), host_nodes=(0,))
    found: list[dict[str, Any]] = []
    for gpu, model, workload, slots, published, source in cases:
        worker = Worker(gpu, model, world.inputs, workload, plain)
        rate = worker.best(nodes=(0,), slots=(slots,)).texts * workload.text
        found.append(
            {
                "gpu": gpu.name, "model": model.name, "slots": slots, "published": published,
                "computed": round(rate, 1), "source": source,
            }
        )  # fmt: skip
    return found


def passes(world: World) -> list[dict[str, Any]]:
    """Estimated plain steps beside what the arithmetic of this plan makes of them, milliseconds."""
    plain = replace(world.drafting("plain", "synthetic"), host=(0.0,), host_nodes=(0,))
    found: list[dict[str, Any]] = []
    for model, slots, eager, frozen in ESTIMATES:
        ways: tuple[tuple[Way, tuple[float, float]], ...] = (("eager", eager), ("frozen", frozen))
        row: dict[str, Any] = {"model": model.name, "slots": slots}
        # Reading at a copy's bandwidth, which is what nothing can be faster than.
        bytes_read = 2 * model.parameters + slots * 600 * model.kv_bytes
        row["limit_ms"] = round(1e3 * bytes_read / (_COPY * H100.bandwidth), 2)
        for way, (low, high) in ways:
            worker = Worker(H100, model, world.inputs, Workload(prompt=500, text=200), plain, way)
            computed = round(1e3 * worker.gpu_seconds(slots, slots), 2)
            row[way] = {"low": low, "high": high, "computed": computed}
        found.append(row)
    return found


def one_gpu(world: World) -> dict[str, Any]:
    """Every variant in every mode, each at its own best setting."""
    found: dict[str, Any] = {}
    for variant in _VARIANTS:
        speeds = {mode: world.best(variant, mode) for mode in MODES}
        plain = speeds["plain"].texts
        found[variant.name] = {
            mode: {
                **asdict(speed.setting),
                "texts_per_second": round(speed.texts, 3),
                "over_plain": round(speed.texts / plain, 3),
                "tokens_per_pass": round(speed.tokens_per_pass, 3),
                "pass_ms": round(1e3 * speed.pass_seconds, 2),
                "prompt_share": round(speed.prompt_seconds / speed.pass_seconds, 3),
                "host_share": round(speed.host_seconds / speed.pass_seconds, 3),
                "dollars_per_million": round(1e6 / speed.texts / 3600 * variant.gpu.price, 1),
            }
            for mode, speed in speeds.items()
        }
    return found
