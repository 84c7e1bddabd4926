"""vLLM and SGLang on the prompts that were replayed, where they are installed: plain decoding of
the same shapes, as many tokens of each text. Weights are made up by the engines themselves.

Each runs in a process of its own, which imports no model of draftrec's.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import note, spread
from gpu_replay import TEXTS_ALONE
from gpu_steps import SHAPES, TINY, config_of
from gpu_texts import Replayed

PEERS = ("vllm", "sglang")
_ROUNDS = 3


def missing(name: str) -> str | None:
    """Why a peer cannot run here; None if it can be tried."""
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed in this environment (pip install {name})"
    return None


def measure_peer(
    name: str, shape: str, source: Replayed, batches: tuple[int, ...], longest: int
) -> dict[str, Any]:
    """Tokens per second at every batch size, prompts included."""
    start = {"vllm": _vllm, "sglang": _sglang}[name]
    with tempfile.TemporaryDirectory() as scratch:
        config = config_of((SHAPES | TINY)[shape])
        config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
        config.save_pretrained(scratch)
        write, close = start(Path(scratch), max(batches))
        try:
            found = {f"batch_{batch}": _timed(write, source, batch, longest) for batch in batches}
        finally:
            close()
    return {"version": version(name), "source": source.name, **found}


def _timed(write: Any, source: Replayed, batch: int, longest: int) -> dict[str, Any]:
    requests = source.requests[: TEXTS_ALONE if batch == 1 else batch]
    wanted = [min(len(source.texts[r.entity_id]), longest) for r in requests]
    prompts = [r.prompt_ids.tolist() for r in requests]
    seconds: list[float] = []
    for turn in range(_ROUNDS + 1):
        start = time.perf_counter()
        for first in range(0, len(prompts), batch):
            here = slice(first, first + batch)
            written = write(prompts[here], wanted[here])
            if written != wanted[here]:
                raise RuntimeError(f"asked for {wanted[here]} tokens, got {written}")
        if turn:  # the first warms up
            seconds.append(time.perf_counter() - start)
    rate = spread([sum(wanted) / s for s in seconds])
    note(f"  batch {batch}: {rate['median']} tokens/s")
    return {"texts": len(requests), "tokens": sum(wanted), "tokens_per_second": rate}


def _vllm(folder: Path, most: int) -> tuple[Any, Any]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
        max_model_len=2048, max_num_seqs=most, enable_prefix_caching=False, seed=0,
    )  # fmt: skip

    def write(prompts: list[list[int]], tokens: list[int]) -> list[int]:
        asked = [
            SamplingParams(
                temperature=0.0, max_tokens=n, min_tokens=n, ignore_eos=True, detokenize=False
            )
            for n in tokens
        ]
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        done = engine.generate(inputs, asked, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in done]

    return write, lambda: None


def _sglang(folder: Path, most: int) -> tuple[Any, Any]:
    import sglang

    engine = sglang.Engine(
        model_path=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
        context_length=2048, max_running_requests=most, disable_radix_cache=True, random_seed=0,
    )  # fmt: skip

    def write(prompts: list[list[int]], tokens: list[int]) -> list[int]:
        asked = [{"temperature": 0.0, "max_new_tokens": n, "ignore_eos": True} for n in tokens]
        done = engine.generate(input_ids=prompts, sampling_params=asked)
        return [len(output["output_ids"]) for output in done]

    return write, engine.shutdown
