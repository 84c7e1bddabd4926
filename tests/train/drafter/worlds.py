"""A tiny target and a run of texts that it wrote, in seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from draftrec.config import JobConfig, RecordsConfig, make_config
from draftrec.jobs.knowledge.job import JobSpec, run_job
from draftrec.train.drafter.fit import DrafterSpec
from draftrec.train.settings import HeadSettings, TrainSettings
from tests.models import zoo
from tests.models.folders import save, word

SETTINGS = TrainSettings(
    epochs=2, batch_tokens=200, lr=5e-3, dropout=0.0, drop_items=0.0, device="cpu", save_steps=3
)
HEAD = HeadSettings(vocabulary=40, levels=3)


def make_target(folder: Path, *, counts: bool = False) -> Path:
    """A Llama of 97 words with random weights; one that `counts` writes word 10 after word 9, and
    after word 96 word 3: what comes next is known from the last token alone."""
    model: Any = zoo.build("llama")
    if counts:
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            embedded = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1)
            model.lm_head.weight[4:] = embedded[3:-1]
            model.lm_head.weight[:3] = 0.0
            model.lm_head.weight[3] = embedded[-1]
    return save(model, folder)


def write_records(path: Path, entities: int = 30, seed: int = 0) -> Path:
    """Prompts of some words, all of which begin alike."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(entities):
        ids = [5, 6, 7, *rng.integers(3, 97, rng.integers(2, 9)).tolist()]
        rows.append({"entity_id": f"e{i}", "prompt": " ".join(map(word, ids))})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_run(folder: Path, target: Path, records: Path, **settings: Any) -> Path:
    """A finished run in `folder`."""
    keep = RecordsConfig(keep_prompts=settings.pop("keep_prompts", False))
    given = {"max_new_tokens": 16, "draft": "none", "dtype": "float32"} | settings
    config = JobConfig(generate=make_config(str(target), **given), records=keep, shard_size=8)
    run_job(JobSpec(config, str(records), folder))
    return folder


def drafter_spec(target: Path, runs: Seq[Path], output: Path, **changes: Any) -> DrafterSpec:
    """A training of two epochs."""
    spec = DrafterSpec(
        runs=runs, model=str(target), output=output, head=HEAD, settings=SETTINGS, held_out=3
    )
    return replace(spec, **changes)
