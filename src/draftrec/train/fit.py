"""Train a target: a language model that writes the semantic id of the next item."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from draftrec.data.sequences import USUAL, SequenceColumns, read_semantic_ids
from draftrec.engine.rotary import context_length, uniform_length
from draftrec.errors import DraftrecError
from draftrec.items.prompts import TEXT_FORMAT, HistoryEncoder, check_texts
from draftrec.items.semantic_ids import SemanticIds, whole_items
from draftrec.items.settings import PromptFormat
from draftrec.items.trie import ItemTrie
from draftrec.models.recommender import (
    INFO_FILE,
    RecommenderInfo,
    check_ids,
    form_of,
    new_tokenizer,
    read_info,
)
from draftrec.train import presets
from draftrec.train.examples import Batch, Examples, TrainingData, read_training_data
from draftrec.train.files import check_apart
from draftrec.train.loop import ItemValidator, TrainWatcher, Validation, Validator, answer_loss
from draftrec.train.presets import LoraSettings, ModelSource, adapted
from draftrec.train.session import RECOMMENDER, Prepared, Session, save_trained
from draftrec.train.settings import FitRun, TrainSettings


@dataclass(frozen=True)
class FitSpec(FitRun):
    """A target to train. `form` None: `usual_form`."""

    sequences: str
    sids: str
    output: Path
    source: ModelSource = field(default_factory=ModelSource)
    settings: TrainSettings = field(default_factory=TrainSettings)
    form: PromptFormat | None = None
    lora: LoraSettings | None = None
    overwrite: bool = False
    columns: SequenceColumns = USUAL


@dataclass(frozen=True, eq=False)
class NextItems:
    """The task of a target: predict every item from those before it."""

    examples: Examples
    validator: Validator | ItemValidator | None

    def steps(self) -> int:
        return self.examples.steps()

    def batches(self, epoch: int) -> Iterator[Batch]:
        return self.examples.batches(epoch)

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

    Raises DraftrecError for unusable input, and Interrupted once `should_stop()` is true.
    """
    if spec.lora and spec.source.kind != "checkpoint":
        raise DraftrecError("--lora adapts a checkpoint; give one with --from, or leave --lora out")
    check_apart(spec.output, {"--from": spec.source.folder})
    sids = read_semantic_ids(spec.sids, spec.columns)
    if spec.whole_items:
        sids = whole_items(sids)
    data = read_training_data(
        spec.sequences, sids, spec.limit, with_valid=spec.with_valid, columns=spec.columns
    )
    identity = {
        **presets.source_record(spec.source),
        "sids": sids.fingerprint(),
        "sequences": data.fingerprint(),
        "prompt": spec.form.as_dict() if spec.form else None,
        "lora": asdict(spec.lora) if spec.lora else None,
        "recall_users": spec.recall_users,
        **spec.settings.deciding(),
    }
    watcher = watcher or TrainWatcher()
    session = Session(
        spec.output, spec.settings, identity, spec.overwrite, watcher, should_stop, RECOMMENDER
    )
    summary = session.run(lambda: prepare(spec, sids, data))
    return {**summary, "unknown_items": data.unknown}


def prepare(spec: FitSpec, sids: SemanticIds, data: TrainingData) -> Prepared:
    """The model and its examples. Raises DraftrecError for what cannot be trained."""
    if spec.source.kind == "checkpoint":
        model, tokenizer, encoder = _continued(spec, sids)
    else:
        tokenizer = new_tokenizer(sids.tokens)
        item_tokens = sids.token_ids(tokenizer.get_vocab())
        form = spec.form or usual_form(spec.source)
        check_texts(form, tokenizer)
        encoder = HistoryEncoder(form, tokenizer, item_tokens)
        context = longest(encoder)
        model = presets.untrained(spec.source, tokenizer, context, spec.settings.seed)
    settings = spec.settings
    examples = Examples(
        encoder,
        data.train,
        settings.batch_tokens,
        settings.drop_items,
        settings.jitter,
        settings.seed,
    )
    info = RecommenderInfo(
        kind="items" if spec.whole_items else "target",
        objective="sft",
        levels=sids.levels,
        prompt=encoder.form.as_dict(),
        sids=sids.fingerprint(),
    )
    validator = None
    if data.valid_targets and spec.whole_items:
        validator = ItemValidator(encoder, data.valid_histories, data.valid_targets)
    elif data.valid_targets:
        trie = ItemTrie.build(np.arange(len(sids)), encoder.item_tokens)
        validator = Validator(
            encoder, trie, data.valid_histories, data.valid_targets, recall_users=spec.recall_users
        )
    note = f"{len(data.train):,} users, {examples.steps():,} steps an epoch"
    save = partial(save_trained, spec.output, model, tokenizer, info, sids)
    return Prepared(NextItems(examples, validator), model, note, save)


def usual_form(source: ModelSource) -> PromptFormat:
    """The prompt where nothing else is asked for: a recommender's own, texts for other checkpoints,
    nothing around the items for new models. Raises DraftrecError for a damaged recommender."""
    if source.kind != "checkpoint":
        return PromptFormat()
    if (Path(source.name) / INFO_FILE).is_file():
        return form_of(source.name, read_info(source.name))
    return TEXT_FORMAT


def longest(encoder: HistoryEncoder) -> int:
    """Tokens of the longest prompt and its answer."""
    most = np.zeros(encoder.form.max_items, np.int64)
    return len(encoder.encode(most)) + encoder.levels


def _continued(
    spec: FitSpec, sids: SemanticIds
) -> tuple[Any, PreTrainedTokenizerBase, HistoryEncoder]:
    """A checkpoint that may have been a recommender before, or a model of language."""
    source = spec.source.name
    model, tokenizer, first_new = presets.extended_checkpoint(
        source, sids.tokens, spec.settings.seed
    )
    form = spec.form or usual_form(spec.source)
    if (Path(source) / INFO_FILE).is_file():
        check_ids(read_info(source), Path(source), sids, spec.sids, again=True)
    if spec.form is not None:
        check_texts(form, tokenizer)
    encoder = HistoryEncoder(form, tokenizer, sids.token_ids(tokenizer.get_vocab()))
    encoder = encoder.fit(uniform_length(model, context_length(model)))
    model.requires_grad_(True)
    if spec.lora:
        model = adapted(model, spec.lora, first_new)
    return model, tokenizer, encoder
