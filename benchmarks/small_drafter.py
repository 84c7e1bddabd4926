"""Would a small language model of its own draft as well as a draft head does?

    python benchmarks/small_drafter.py RUN --model DIR --head HEAD --work WORK

The usual draft model: a Llama of a few million weights over the same draft tokens, which reads the
prompt and the text itself and sees nothing of the target's hidden states. It learns from the texts
that HEAD learnt from (`draftrec drafter fit RUN`, the same `--limit`), with the same loss, KL to
the target's probabilities, and is judged on the texts that were held out there by the same figure:
tokens per call of the target where the most probable token is drafted at every level, no pool.
Interrupted, it goes on. Nothing is timed but the training. The last line is the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from common import note, write_result
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from draftrec.config import ModelConfig
from draftrec.data.files.places import place
from draftrec.engine.selfcheck import checked_target
from draftrec.models.drafters import OutputRows, describe_drafter, score_transform
from draftrec.models.loading import eos_token_ids, load_model, load_tokenizer, vocabulary
from draftrec.train.drafter.fit import held_out
from draftrec.train.drafter.task import Batch, HeadTask, draft_vocabulary
from draftrec.train.drafter.texts import FeatureFiles, open_runs
from draftrec.train.files import TrainingFolder
from draftrec.train.loop import Trainer, TrainWatcher
from draftrec.train.settings import HEAD_TRAINING, HeadSettings, TrainSettings

#: Layers, width, heads, inner width.
SHAPES = {"5m": (4, 256, 4, 704), "9m": (6, 320, 5, 864)}


class SmallModel(nn.Module):
    """A causal model over draft tokens, and one more for all others; `output` is the target's."""

    def __init__(self, shape: str, index: torch.Tensor, output: OutputRows) -> None:
        super().__init__()
        layers, width, heads, inner = SHAPES[shape]
        self.tokens = int(index.max())
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.tokens + 1, hidden_size=width, intermediate_size=inner,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
                max_position_embeddings=4096, tie_word_embeddings=True,
            )
        )  # fmt: skip
        self._borrowed = index, output

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def output(self) -> OutputRows:
        return self._borrowed[1]

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, batch: Batch, levels: int) -> list[torch.Tensor]:
        """Scores `[M, V]`, as good for one level as for another: a token counts only where all
        before it were the text's own, which the model has read then."""
        ids, text = self._borrowed[0][batch["ids"]], batch["text"]
        real = torch.arange(ids.shape[1], device=ids.device) >= batch["lead"][:, None]
        places = (real.cumsum(1) - 1).clamp_min(0)
        found = self.model(ids, attention_mask=real.long(), position_ids=places, use_cache=False)
        scores = found.logits[:, ids.shape[1] - text.shape[1] :, : self.tokens][text >= 0]
        return [scores] * levels


class SmallTask(HeadTask):
    """A head's task for a model whose levels are all the same, and which gives scores."""

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        seen = self._seen(batch)
        scores = self._scores(model, model(batch, 1), seen)
        return self._lost(batch, self._wanted(model, batch, seen), scores)

    def _scores(self, model: Any, found: Any, seen: Any) -> Any:
        return (seen(scores.float()) for scores in found)


def main() -> None:
    """Train, judge, write drafter-small.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a folder of `draftrec generate`")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--head", type=Path, required=True, help="a head of the same texts")
    parser.add_argument("--work", type=Path, required=True, help="folder outside the repository")
    parser.add_argument("--shape", choices=SHAPES, default="5m")
    parser.add_argument("--epochs", type=int, default=HEAD_TRAINING["epochs"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precision", default="no")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="drafter-small")
    parser.add_argument("--results", type=Path, help="folder of the result file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = describe_drafter(args.head)
    runs, _ = open_runs([place(args.run)], (), head["texts"])
    target: Any = load_model(ModelConfig(model=str(args.model), device="cpu"), packs=True)
    tokenizer = load_tokenizer(str(args.model))
    texts = runs[0].training_texts(target, tokenizer)
    apart = held_out(texts, 128, 0)  # as `drafter fit` does by default
    held = [i for i, text in enumerate(texts) if text.entity_id in apart]
    taught = [i for i, text in enumerate(texts) if text.entity_id not in apart]
    ends = sorted(eos_token_ids(target, tokenizer))
    chosen = draft_vocabulary([texts[i] for i in taught], ends, head["vocabulary"])
    tokens = torch.from_numpy(chosen).long()
    index = torch.full((vocabulary(target),), len(tokens))
    index[tokens] = torch.arange(len(tokens))
    features = FeatureFiles(args.work / "features", [it.ids for it in texts], head["model"])
    features.claim()
    output = OutputRows.of(target, tokens, torch.float32, *score_transform(target))
    if features.missing:
        features.compute(checked_target(target), lambda _: None, lambda: False)
    del target
    settings = TrainSettings(
        **{**HEAD_TRAINING, "epochs": args.epochs, "dropout": args.dropout},
        device="cpu", precision=args.precision,
    )  # fmt: skip
    asked = HeadSettings(vocabulary=len(tokens), levels=head["levels"])
    task = SmallTask(
        texts, features, taught, held, index, len(tokens), asked, settings.batch_tokens, 0
    )
    model = SmallModel(args.shape, index, output)
    weights = sum(p.numel() for p in model.parameters())
    note(f"{weights:,} weights, {len(taught)} texts, {task.steps()} steps an epoch")
    folder = TrainingFolder(args.work / "training", "none")
    folder.path.mkdir(parents=True, exist_ok=True)
    done = Trainer(task, model, settings, folder).run(Told())
    best = done.epochs[done.best_epoch]
    told = ("texts", "epochs", "seconds", "weights", "valid_tokens_per_call", "valid_loss")
    found = {
        "settings": {
            "shape": args.shape, "epochs": args.epochs, "dropout": args.dropout,
            "precision": args.precision, "threads": args.threads, "levels": head["levels"],
            "draft_tokens": len(tokens), "held_out": len(held),
        },
        "model": args.model.name,
        "head": {name: head[name] for name in told},
        "small": {
            "texts": len(texts), "epochs": len(done.epochs), "seconds": round(done.seconds, 1),
            "weights": weights, "valid_tokens_per_call": best["valid_tokens_per_call"],
            "valid_loss": best["valid_loss"],
        },
    }  # fmt: skip
    write_result(args.name, found, seed=0, folder=args.results)


class Told(TrainWatcher):
    """Says every epoch's figures."""

    def epoch(self, record: dict[str, float]) -> None:
        note(str(record))


if __name__ == "__main__":
    main()
