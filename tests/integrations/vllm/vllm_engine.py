"""A stand-in for vLLM's engine: rows of token ids, drafts verified against texts known before."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from draftrec.core import IntArray
from draftrec.integrations.vllm import PoolProposer

EOS = 2


def config(folder: Any, *, tokens: int = 4, most: int = 64, **extra: Any) -> Any:
    """As much of a `VllmConfig` as a proposer looks at; `extra`: draftrec's additional_config."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            tokenizer=str(folder),
            skip_tokenizer_init=folder is None,
            max_model_len=most,
            hf_text_config=SimpleNamespace(eos_token_id=EOS),
            try_get_generation_config=dict,
        ),
        speculative_config=SimpleNamespace(num_speculative_tokens=tokens),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
        # Toy pools hold too little to be sure of anything.
        additional_config={"draftrec": {"min_prob": 0.001} | extra} if extra else {},
    )


@dataclass(eq=False)
class Job:
    """A request whose text is known: what the model writes, whatever is drafted."""

    prompt: list[int]
    text: list[int]
    written: int = 0
    draft: list[int] = field(default_factory=list[int])
    passes: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.text[: self.written]

    @property
    def done(self) -> bool:
        return self.written >= len(self.text)


class Engine:
    """Verifies drafts and asks the proposer, as vLLM's model runner does after every step.

    Rows of `token_ids_cpu` are reused without being wiped, so that what is behind a row's length is
    what another request has left there.
    """

    def __init__(self, proposer: PoolProposer, rows: int = 4, most: int = 64) -> None:
        self.proposer = proposer
        self.buffer: IntArray = np.full((rows, most), 77, np.int32)
        self.lengths = np.zeros(rows, np.int32)

    def step(self, rows: list[Job], reading: tuple[int, ...] = ()) -> None:
        """One step; the prompts of the rows in `reading` are not read to the end yet."""
        sampled = [[] if i in reading else self._verified(job) for i, job in enumerate(rows)]
        for i, job in enumerate(rows):
            tokens = job.tokens
            self.lengths[i] = len(tokens)
            self.buffer[i, : len(tokens)] = tokens
        drafts = self.proposer.propose(sampled, self.lengths, self.buffer, slot_mappings=None)
        assert len(drafts) == len(rows)
        for job, draft in zip(rows, drafts, strict=True):
            job.draft = draft

    def run(self, *rows: Job) -> None:
        """Steps until all are done; rows close up when a request ends, as vLLM's do."""
        running = list(rows)
        while running:
            self.step(running)
            for i in reversed(range(len(running))):
                if running[i].done:
                    last = running.pop()
                    if i < len(running):
                        running[i] = last

    def _verified(self, job: Job) -> list[int]:
        job.passes += 1
        rest = job.text[job.written :]
        same = 0
        while same < min(len(job.draft), len(rest) - 1) and job.draft[same] == rest[same]:
            same += 1
        job.written += same + 1
        return rest[: same + 1]
