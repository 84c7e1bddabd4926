"""What single forward passes cost: model shapes, the memory floor, plain steps, wide passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from common import note, spread
from transformers import AutoModelForCausalLM, LlamaConfig

from draftrec.engine.packing import Segment
from draftrec.engine.passes.attention import steady_kernels
from draftrec.engine.selfcheck import checked_target
from draftrec.engine.target import Target, Way
from draftrec.engine.tree import chain


@dataclass(frozen=True)
class Shape:
    """A Llama without trained weights."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool


SHAPES = {
    "qwen-0.5b": Shape(24, 896, 14, 2, 4864, 151_936, tied=True),
    "llama-1b": Shape(16, 2048, 32, 8, 8192, 128_256, tied=True),
    "llama-7b": Shape(32, 4096, 32, 32, 11_008, 32_000, tied=False),
}
TINY = {
    "tiny-tied": Shape(2, 64, 4, 2, 128, 8192, tied=True),
    "tiny-untied": Shape(2, 64, 4, 4, 128, 8192, tied=False),
}
#: Ways to run a model.
WAYS: tuple[Way, ...] = ("eager", "frozen")


def config_of(shape: Shape) -> LlamaConfig:
    """The shape as transformers' configuration."""
    return LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, tie_word_embeddings=shape.tied,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip


def build(shape: Shape, device: torch.device, seed: int = 0) -> Any:
    """The model in bfloat16, its random weights drawn on the device itself."""
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    # Dropout off, gradients off, and nothing left behind on the host.
    return model.to(device).eval().requires_grad_(requires_grad=False)


def target_of(model: Any, way: Way, *, exact: bool = False) -> Target:
    """The model run one way, beside others that it is run in already."""
    model.set_attn_implementation("sdpa")
    return checked_target(model, exact=exact, way=way)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights a step must read: all but an embedding that is only looked up in."""
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    embedding = model.get_input_embeddings().weight
    tied = embedding.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    return total if tied else total - embedding.numel() * embedding.element_size()


def sync_for(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what it was asked."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def copy_bandwidth(device: torch.device, size: int, repeats: int = 7) -> dict[str, Any]:
    """Bytes per second of a device-to-device copy, read and written bytes both counted."""
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)
    sync, rates = sync_for(device), []
    for turn in range(repeats + 2):
        sync()
        start = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        sync()
        if turn >= 2:
            rates.append(4 * 2 * size / (time.perf_counter() - start))
    return spread(rates)


def segments_for(slots: int, rows: int, context: int, vocabulary: int) -> list[Segment]:
    """`rows` rows over at most `slots` sequences that hold `context` tokens each."""
    rng = np.random.default_rng(rows)
    sequences = min(slots, rows)
    sizes = [rows // sequences + (i < rows % sequences) - 1 for i in range(sequences)]
    return [
        Segment(
            i,
            context,
            rng.integers(3, vocabulary, 1).astype(np.int32),
            chain(rng.integers(3, vocabulary, n).tolist()),
        )
        for i, n in enumerate(sizes)
    ]


def reserve(target: Target, slots: int, capacity: int) -> None:
    """Room for the passes, filled with noise: all-zero operands can run faster than real ones."""
    target.reserve(slots, capacity)
    assert target.slab is not None
    for rows in target.slab.memory:
        rows.normal_()


def pass_seconds(target: Target, segments: list[Segment], repeats: int) -> list[float]:
    """Seconds of a pass whose verdict is read back, as in decoding."""
    sync, seconds = sync_for(target.device), []
    for turn in range(repeats + 2):
        sync()
        start = time.perf_counter()
        target.score(segments).logits.argmax(-1).cpu()
        if turn >= 2:
            seconds.append(time.perf_counter() - start)
    return seconds


def first_sight_seconds(target: Target, segments: list[Segment], passes: int) -> list[float]:
    """Seconds of passes that see one key more each, as decoding does: of shapes that are new."""
    sync, seconds = sync_for(target.device), []
    pass_seconds(target, segments, 1)
    for grown in range(1, passes + 1):
        longer = [replace(s, start=s.start + grown) for s in segments]
        sync()
        start = time.perf_counter()
        target.score(longer).logits.argmax(-1).cpu()
        seconds.append(time.perf_counter() - start)
    return seconds


def busy_seconds(target: Target, segments: list[Segment], passes: int = 3) -> float | None:
    """Seconds per pass in which a kernel ran; the rest of the wall time the device waited."""
    if target.device.type != "cuda":
        return None
    kinds = [torch.profiler.ProfilerActivity.CUDA]
    try:
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(passes):
                target.score(segments).logits.argmax(-1).cpu()
            torch.cuda.synchronize()
        total = sum(event.self_device_time_total for event in profile.key_averages())
    except RuntimeError as error:  # a profiler that does not work here costs one figure, not all
        note(f"no profile: {error}")
        return None
    return total / passes * 1e-6


@contextmanager
def by_itself(model: Any) -> Iterator[None]:
    """The model with transformers' own attention, of the kernels that draftrec uses as well: those
    that it leaves out prepare themselves for every new length, so that with them the baseline would
    be slow for no fault of its own."""
    ours = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        with steady_kernels(model.device), torch.inference_mode():
            yield
    finally:
        model.set_attn_implementation(ours)


def hf_seconds(model: Any, prompts: list[Any], tokens: int) -> float:
    """Seconds of `model.generate` over `prompts`, int32 `[P]` each, padded on the left: exactly
    `tokens` new tokens for each."""
    width = max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt)).long()
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    sync = sync_for(model.device)
    sync()
    start = time.perf_counter()
    with by_itself(model):
        model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens,
            pad_token_id=0,
        )  # fmt: skip
    sync()
    return time.perf_counter() - start


def hf_step_seconds(model: Any, batch: int, context: int, steps: int = 32) -> list[float]:
    """Seconds per token of `model.generate`, prompt not counted: two lengths, their difference."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, model.config.vocab_size, context) for _ in range(batch)]
    hf_seconds(model, prompts, 2)
    return [
        (hf_seconds(model, prompts, steps + 2) - hf_seconds(model, prompts, 2)) / steps
        for _ in range(3)
    ]
