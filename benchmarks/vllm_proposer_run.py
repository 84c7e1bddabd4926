"""One engine of vllm_proposer.py, in a process of its own: warming prompts, then timed ones.

Reads a JSON file (`model`, `engine` arguments, `max_num_seqs`, `max_tokens`, prompts as token ids:
`warm`, and `timed` by batch size), writes another. Run by vllm_proposer.py; needs vLLM.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

_COUNTERS = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
_NAMES = count()


def main(job_file: str, result_file: str) -> None:
    """Run the job and write its result."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # steps are counted in this process
    from vllm import LLM, SamplingParams

    job = json.loads(Path(job_file).read_text())
    llm = LLM(
        job["model"], dtype="float32", enforce_eager=True, disable_log_stats=False, seed=0,
        max_num_seqs=job["max_num_seqs"], **job["engine"],
    )  # fmt: skip
    clock, params = Clock(llm), SamplingParams(temperature=0.0, max_tokens=job["max_tokens"])
    warm = write(llm, job["warm"], params, job["max_num_seqs"])
    timed = {
        batch: measured(llm, prompts, params, int(batch), clock)
        for batch, prompts in job["timed"].items()
    }
    Path(result_file).write_text(json.dumps({"warm_texts": warm.texts, "timed": timed}))


@dataclass
class Written:
    """Token ids of the texts, and the forward passes that they took, each text's own summed up."""

    texts: list[list[int]] = field(default_factory=list[list[int]])
    passes: int = 0


def measured(
    llm: Any, prompts: list[list[int]], params: Any, batch: int, clock: Clock
) -> dict[str, Any]:
    """Texts of the prompts, `batch` at a time, and what they took."""
    before, clock.seconds = counters(llm), 0.0
    start, start_cpu = time.perf_counter(), time.process_time()
    written = write(llm, prompts, params, batch)
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "draft_seconds": clock.seconds,
        "texts": written.texts,
        "passes": written.passes,
        **{name: value - before[name] for name, value in counters(llm).items()},
    }


def write(llm: Any, prompts: list[list[int]], params: Any, batch: int) -> Written:
    """Write a text for each prompt; the next one starts when one of `batch` is done.

    A step that gives a text tokens is a pass of that text, the one over its prompt included.
    """
    engine, places = llm.llm_engine, dict[str, int]()
    written = Written([[] for _ in prompts])
    waiting = list(enumerate(prompts))
    while waiting or places:
        while waiting and len(places) < batch:
            place, prompt = waiting.pop(0)
            name = f"{next(_NAMES)}-"
            places[name] = place
            engine.add_request(name, {"prompt_token_ids": prompt}, params.clone())
        for output in engine.step():
            name = output.request_id.split("-")[0] + "-"
            ids = list(output.outputs[0].token_ids)
            written.passes += len(ids) > len(written.texts[places[name]])
            written.texts[places[name]] = ids
            if output.finished:
                del places[name]
    return written


def counters(llm: Any) -> dict[str, float]:
    """vLLM's own counts of speculative decoding; zeros without it."""
    found = dict.fromkeys(_COUNTERS, 0.0)
    for metric in llm.get_metrics():
        name = metric.name.removeprefix("vllm:spec_decode_")
        if name in found:
            found[name] += metric.value
    return found


class Clock:
    """Adds up the seconds of the engine's `propose`, whichever it is."""

    def __init__(self, llm: Any) -> None:
        self.seconds = 0.0
        runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
        drafter = getattr(runner, "drafter", None)
        if drafter is None:
            return
        propose = drafter.propose

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return propose(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        drafter.propose = timed


if __name__ == "__main__":
    main(*sys.argv[1:])
