"""Train a target: a language model that writes the semantic id of the next item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from draftrec.alignment import presets
from draftrec.alignment.histories import TrainingData, read_training_data
from draftrec.alignment.lessons import Batch, Lessons
from draftrec.alignment.lora import LoraSettings, adapted, merged
from draftrec.alignment.settings import TrainSettings
from draftrec.alignment.train import Progress, Trainer, TrainWatcher, Validation
from draftrec.alignment.training_files import TrainingFolder
from draftrec.alignment.validation import Validator, answer_loss
from draftrec.data.sequences import read_semantic_ids
from draftrec.errors import DraftrecError
from draftrec.models.loading import context_length
from draftrec.models.recommender import (
    INFO_FILE,
    RecommenderInfo,
    new_tokenizer,
    read_info,
    save_recommender,
)
from draftrec.tokens.item_trie import ItemTrie
from draftrec.tokens.prompts import TEXT_FORMAT, HistoryEncoder, PromptFormat
from draftrec.tokens.semantic_ids import SemanticIds


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a preset's name, a configuration file, or a checkpoint."""

    kind: Literal["preset", "config", "checkpoint"] = "preset"
    name: str = "small"


@dataclass(frozen=True, slots=True)
class FitSpec:
    """A target to train. `form` None: texts for checkpoints, none for new models.

    `with_valid` learns from the valid items too, for as many epochs as were found to be good.
    """

    sequences: str
    sids: str
    output: Path
    source: ModelSource = ModelSource()
    settings: TrainSettings = field(default_factory=TrainSettings)
    form: PromptFormat | None = None
    lora: LoraSettings | None = None
    limit: int | None = None
    recall_users: int = 1000
    with_valid: bool = False
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class Pupil:
    """A model about to be trained, with what is needed to teach it and to save it."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    encoder: HistoryEncoder
    trie: ItemTrie
    first_new: int = 0


@dataclass(frozen=True, eq=False)
class NextItems:
    """The task of a target: predict every item from those before it."""

    lessons: Lessons
    validator: Validator | None

    def steps(self) -> int:
        return self.lessons.steps()

    def batches(self, epoch: int) -> Iterator[Batch]:
        return self.lessons.batches(epoch)

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean cross entropy per token of an item (supervised fine-tuning, SFT)."""
        return answer_loss(model, batch, "mean")

    def validate(self, model: Any) -> Validation | None:
        return self.validator(model) if self.validator else None


def fit(
    spec: FitSpec,
    watcher: TrainWatcher | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Train the target and write its folder, or go on where an interruption left off; a summary.

    Raises DraftrecError for unusable input, and TrainInterrupted once `should_stop()` is true.
    """
    watcher = watcher or TrainWatcher()
    sids = read_semantic_ids(spec.sids)
    data = read_training_data(spec.sequences, sids, spec.limit, with_valid=spec.with_valid)
    identity = _identity(spec, sids, data)
    folder = TrainingFolder(spec.output / "training")
    if not spec.overwrite:
        folder.check(identity)
        if (spec.output / INFO_FILE).is_file():
            watcher.note(f"{spec.output} is already trained; nothing was changed")
            return summary(spec.output, read_info(spec.output))
    pupil = make_pupil(spec, sids)
    lessons = Lessons(
        pupil.encoder, data.train, spec.settings.batch_tokens, spec.settings.drop_items,
        spec.settings.seed,
    )  # fmt: skip
    task = NextItems(lessons, validator(pupil, data, spec.recall_users))
    weights = sum(p.numel() for p in pupil.model.parameters())
    watcher.note(
        f"{weights:,} weights, {len(data.train):,} users, {lessons.steps():,} steps an epoch"
    )
    folder.claim(identity, overwrite=spec.overwrite)
    progress = Trainer(task, pupil.model, spec.settings, folder).run(watcher, should_stop)
    info = RecommenderInfo(
        kind="target",
        objective="sft",
        levels=sids.levels,
        prompt=pupil.encoder.form.as_dict(),
        sids=sids.fingerprint(),
        training=training_record(identity, progress, weights),
    )
    save_recommender(spec.output, merged(pupil.model), pupil.tokenizer, info)
    return summary(spec.output, info)


def make_pupil(spec: FitSpec, sids: SemanticIds) -> Pupil:
    """The model to train with its tokenizer and prompts. Raises DraftrecError."""
    if spec.source.kind == "checkpoint":
        return _continued(spec, sids)
    tokenizer = new_tokenizer(sids.tokens)
    encoder = HistoryEncoder(
        spec.form or PromptFormat(), tokenizer, sids.token_ids(tokenizer.get_vocab())
    )
    model = new_model(spec.source, tokenizer, longest(encoder), spec.settings.seed)
    return Pupil(model, tokenizer, encoder, ItemTrie.build(sids.items, encoder.item_tokens))


def new_model(
    source: ModelSource, tokenizer: PreTrainedTokenizerBase, context: int, seed: int
) -> Any:
    """An untrained model for this vocabulary, by a preset or a configuration file."""
    if source.kind == "preset":
        config = presets.preset_config(source.name, tokenizer, context)
    else:
        config = presets.file_config(Path(source.name), tokenizer, context)
    return presets.new_model(config, seed)


def longest(encoder: HistoryEncoder) -> int:
    """Tokens of the longest prompt and its answer."""
    most = encoder.form.max_items
    return len(encoder.encode(torch.zeros(most, dtype=torch.int64).numpy())) + encoder.levels


def validator(pupil: Pupil, data: TrainingData, recall_users: int) -> Validator | None:
    """Asks for the valid items, if there are any."""
    if not data.valid_targets:
        return None
    return Validator(
        pupil.encoder, pupil.trie, data.valid_histories, data.valid_targets,
        recall_users=recall_users,
    )  # fmt: skip


def training_record(identity: dict[str, Any], progress: Progress, weights: int) -> dict[str, Any]:
    """What `genrec.json` says about a training."""
    return {
        **identity,
        "weights": weights,
        "best_epoch": progress.best_epoch,
        "seconds": round(progress.seconds, 1),
        "epochs": progress.epochs,
    }


def summary(output: Path, info: RecommenderInfo) -> dict[str, Any]:
    """What the command line says about a trained model."""
    record = info.training
    best = record["epochs"][record["best_epoch"]]
    return {
        "output": str(output),
        "kind": info.kind,
        "objective": info.objective,
        "weights": record["weights"],
        "epochs": len(record["epochs"]),
        "best_epoch": record["best_epoch"],
        "seconds": record["seconds"],
        **{name: best[name] for name in best if name not in ("epoch", "seconds")},
    }


def _continued(spec: FitSpec, sids: SemanticIds) -> Pupil:
    """A checkpoint that may have been a recommender before, or a model of language."""
    source = spec.source.name
    model, tokenizer, first_new = presets.extended_checkpoint(
        source, sids.tokens, spec.settings.seed
    )
    form = spec.form or TEXT_FORMAT
    if spec.form is None and (Path(source) / INFO_FILE).is_file():
        form = PromptFormat(**read_info(source).prompt)
    encoder = HistoryEncoder(form, tokenizer, sids.token_ids(tokenizer.get_vocab()))
    encoder = encoder.fit(context_length(model))
    model.requires_grad_(True)
    if spec.lora:
        model = adapted(model, spec.lora, first_new)
    trie = ItemTrie.build(sids.items, encoder.item_tokens)
    return Pupil(model, tokenizer, encoder, trie, first_new)


def _identity(spec: FitSpec, sids: SemanticIds, data: TrainingData) -> dict[str, Any]:
    """Everything that decides what the training ends with."""
    if spec.lora and spec.source.kind != "checkpoint":
        raise DraftrecError("--lora adapts a checkpoint; give one with --from, or leave --lora out")
    return {
        "source": f"{spec.source.kind} {spec.source.name}",
        "sids": sids.fingerprint(),
        "sequences": data.fingerprint(),
        "prompt": spec.form.as_dict() if spec.form else None,
        "lora": asdict(spec.lora) if spec.lora else None,
        "recall_users": spec.recall_users,
        **spec.settings.deciding(),
    }
