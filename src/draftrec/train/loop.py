"""The training loop that targets and drafts share: steps, the best weights, resuming; and
validation: the loss of the next item, and Recall@K by real beam search.

A step depends on nothing but the weights, the optimizer's state and its own number: batches and
random numbers follow from seed and number. So a training that was interrupted ends with the same
weights as one that was not.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from draftrec.core import IntArray, LongArray
from draftrec.data.files.writers import renaming, share
from draftrec.engine.beams.drafters import NoBeamDrafter
from draftrec.engine.beams.loop import BeamEngine, search
from draftrec.engine.beams.model import BeamModel, Constraint
from draftrec.engine.beams.state import BeamRequest, Beams
from draftrec.engine.target import Target
from draftrec.errors import DraftrecError, Interrupted, needing
from draftrec.items.hits import find_hits
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.trie import ItemTrie
from draftrec.train.examples import IGNORED, Batch, padded
from draftrec.train.files import TrainingFolder, sound
from draftrec.train.presets import stream_dropout
from draftrec.train.settings import TrainSettings


@dataclass(frozen=True, slots=True)
class Validation:
    """What a validation found; a higher `score` is better."""

    metrics: dict[str, float]
    score: float


class Task(Protocol):
    """What is trained."""

    def steps(self) -> int:
        """Batches of an epoch."""
        ...

    def batches(self, epoch: int) -> Iterator[Batch]: ...

    def loss(self, model: Any, batch: Batch) -> torch.Tensor: ...

    def validate(self, model: Any) -> Validation | None:
        """None where there is nothing to validate on; the last weights are kept then."""
        ...


@dataclass(slots=True)
class Progress:
    """How far a training has come. `epoch` and `step` are those that come next."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_score: float = -math.inf
    seconds: float = 0.0
    loss_sum: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


class TrainWatcher:
    """Is told how a training gets on. This one does not care; the command line draws a bar."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def reading(self, done: int, texts: int) -> None:
        """So many of `texts` have been read by the model that is learnt from."""

    def begin(self, progress: Progress, steps: int) -> None:
        """Training goes on at `progress`; `steps` in all if it does not end early."""

    def step(self, progress: Progress, loss: float) -> None:
        """A step is over."""

    def epoch(self, record: dict[str, float]) -> None:
        """An epoch is over and validated."""


class Trainer:
    """Trains `model` in place; its files lie in `folder`. Parameters without `requires_grad` stay
    as they are. Raises DraftrecError when accelerate is missing."""

    def __init__(
        self, task: Task, model: Any, settings: TrainSettings, folder: TrainingFolder
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.bare = model
        self.accelerator = make_accelerator(settings)
        optimizer = torch.optim.AdamW(_groups(model, settings), lr=settings.lr, betas=(0.9, 0.95))
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.steps = max(1, task.steps() // self.accelerator.num_processes)
        self.progress = Progress()

    def run(self, watcher: TrainWatcher, should_stop: Callable[[], bool] | None = None) -> Progress:
        """Train from where the folder's checkpoint left off; the model has the best weights then.

        Raises Interrupted, after saving, once `should_stop()` is true.
        """
        self._load()
        watcher.begin(self.progress, self.steps * self.settings.epochs)
        with (
            stream_dropout(self.bare, self.settings.dropout),
            self.folder.board() as board,
            warnings.catch_warnings(),
        ):
            # In mixed precision norms compute in float32, as they are meant to.
            warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
            while not self._finished():
                self._epoch(watcher, should_stop)
                record = self._validated()
                board(self.progress.epoch * self.steps, record)
                watcher.epoch(record)
                self._save()
        with sound(self.folder.best):
            _put(self.bare, load_file(self.folder.best))
        self.bare.eval()
        return self.progress

    def _finished(self) -> bool:
        done = self.progress
        tired = done.best_epoch >= 0 and done.epoch - 1 - done.best_epoch >= self.settings.patience
        return done.epoch >= self.settings.epochs or tired

    def _epoch(self, watcher: TrainWatcher, should_stop: Callable[[], bool] | None) -> None:
        done, processes = self.progress, self.accelerator.num_processes
        self.model.train()
        begin = done.step * processes + self.accelerator.process_index
        mine = islice(self.task.batches(done.epoch), begin, self.steps * processes, processes)
        for batch in mine:
            started = time.monotonic()
            loss = self._step(batch)
            done.step += 1
            done.loss_sum += loss
            done.seconds += time.monotonic() - started
            watcher.step(done, loss)
            if should_stop and should_stop():
                self._save()
                raise Interrupted(done)
            if done.step % self.settings.save_steps == 0:
                self._save()

    def _step(self, batch: Batch) -> float:
        number = self.progress.epoch * self.steps + self.progress.step
        torch.manual_seed(self.settings.seed * 1_000_003 + number)
        rate = learning_rate(number, self.steps * self.settings.epochs, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.accelerator.autocast():
            loss = self.task.loss(self.model, {k: v.to(self.bare.device) for k, v in batch.items()})
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DraftrecError(
                f"the loss became {value} in step {number}; lower --lr, or use --precision no"
            )
        return value

    def _validated(self) -> dict[str, float]:
        """Close the epoch: validate, keep the weights if they are the best; its record."""
        done = self.progress
        started = time.monotonic()
        self.bare.eval()
        found = self.task.validate(self.bare)
        record = {"epoch": float(done.epoch), "steps": float(done.step)}
        record["train_loss"] = done.loss_sum / self.steps
        broken = _not_finite(found)
        if broken and done.best_epoch < 0:
            raise DraftrecError(
                f"{broken} after epoch {done.epoch + 1}; lower --lr, or use --precision no"
            )
        if found is None or (not broken and found.score > done.best_score):
            done.best_epoch = done.epoch
            done.best_score = found.score if found else -math.inf
            if self.accelerator.is_main_process:
                with renaming(self.folder.best) as temporary:
                    save_file(_trained(self.bare), temporary)
                share(self.folder.best.parent)
        done.seconds += time.monotonic() - started
        record |= found.metrics if found else {}
        record["seconds"] = done.seconds
        done.epochs.append(record)
        done.epoch, done.step, done.loss_sum = done.epoch + 1, 0, 0.0
        return record

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.folder.save(
                {
                    "progress": asdict(self.progress),
                    "weights": _trained(self.bare),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler else None,
                },
                self.progress.epochs,
            )
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        state = self.folder.load()
        if state is None:
            return
        with sound(self.folder.checkpoint):
            self.progress = Progress(**state["progress"])
            _put(self.bare, state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"] and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(state["scaler"])


def _not_finite(found: Validation | None) -> str | None:
    """What a validation says where the weights have become useless, as in `valid_loss is nan`."""
    figures = found.metrics.items() if found else ()
    return next((f"{name} is {it}" for name, it in figures if not math.isfinite(it)), None)


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Linear from zero over the warm-up, then a cosine to zero."""
    warmup = settings.warmup * steps
    if step < warmup:
        return settings.lr * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1.0, steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def make_accelerator(settings: TrainSettings) -> Any:
    """accelerate's view of devices and precision. Raises DraftrecError if it is not installed."""
    with needing("train", "training needs accelerate"):
        from accelerate import Accelerator
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DraftrecError("--device cuda: PyTorch sees no CUDA device; use --device cpu")
    return Accelerator(mixed_precision=settings.precision, cpu=settings.device == "cpu")


def _groups(model: Any, settings: TrainSettings) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not, nor do weights that ask not to (frozen rows would fade)."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    decaying = [p for p in wanted if p.ndim > 1 and not getattr(p, "no_decay", False)]
    chosen = {id(p) for p in decaying}
    rest = [p for p in wanted if id(p) not in chosen]
    return [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _trained(model: Any) -> dict[str, torch.Tensor]:
    """The weights that training changes, on the CPU."""
    return {
        name: weight.detach().to("cpu", copy=True).contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


@torch.no_grad()
def _put(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Raises ValueError for other weights than those that training changes."""
    own = {n: weight for n, weight in model.named_parameters() if weight.requires_grad}
    sizes, given = ({n: it.shape for n, it in some.items()} for some in (own, weights))
    if sizes != given:
        raise ValueError("it holds the weights of another model")
    for name, weight in own.items():
        weight.copy_(weights[name])


@contextmanager
def own_attention(*models: Any) -> Iterator[None]:
    """Give models in training their attention back, in place of which a `Target` puts its own."""
    before = [model.config._attn_implementation for model in models]
    try:
        yield
    finally:
        for model, attention in zip(models, before, strict=True):
            model.set_attn_implementation(attention)


def best_beams(
    model: Any, trie: ItemTrie, prompts: Seq[IntArray], beams: int, slots: int
) -> list[Beams]:
    """The best `beams` of a model in training after each prompt, by plain search."""
    with own_attention(model):
        target = BeamModel(Target(model), Constraint(trie, trie.levels))
        engine = BeamEngine(target, NoBeamDrafter(), beams, slots)
        return search(engine, [BeamRequest(i, prompt) for i, prompt in enumerate(prompts)])


_BATCH = 64


@dataclass(frozen=True, eq=False)
class Validator:
    """Asks a model what comes after `histories` (int64 `[h]` places each) and compares with
    `targets` (int64 `[t]` places each, t >= 1, all of what came next, in order).

    `k` items are recommended from `beams` beams; users beyond `recall_users` count for the loss
    alone, and none at all are searched for 0.
    """

    encoder: HistoryEncoder
    trie: ItemTrie
    histories: Seq[LongArray]
    targets: Seq[LongArray]
    k: int = 10
    beams: int = 20
    recall_users: int = 1000

    def __call__(self, model: Any) -> Validation:
        """The loss, in nats per item, which decides, and the recall, which is there to be seen.

        A thousand users' Recall@10 of a few percent is uncertain by a tenth of itself and more: it
        would stop a training that is still getting better.
        """
        figures = {"valid_loss": self.loss(model)}
        if self.recall_users:
            figures[f"valid_recall@{self.k}"] = self.recall(model)
        return Validation(figures, -figures["valid_loss"])

    @torch.inference_mode()
    def loss(self, model: Any) -> float:
        """Mean negative log-probability of the item that came next, all of its tokens."""
        examples = []
        for history, targets in zip(self.histories, self.targets, strict=True):
            prompt, answer = self.encoder.encode(history), self.encoder.item_tokens[targets[0]]
            ids = np.concatenate([prompt, answer])
            examples.append((ids, np.arange(len(ids)) >= len(prompt)))
        examples.sort(key=lambda example: len(example[0]))
        total = 0.0
        for first in range(0, len(examples), _BATCH):
            batch = padded(examples[first : first + _BATCH])
            total += float(answer_loss(model, batch, "sum"))
        return total / len(examples)

    def recall(self, model: Any) -> float:
        """Share of a user's targets among the `k` recommended items, averaged over users."""
        count = self.recall_users
        prompts = [self.encoder.encode(history) for history in self.histories[:count]]
        found = best_beams(model, self.trie, prompts, self.beams, _BATCH)
        ids = self.trie.items
        hits = [
            self._hits(beams.leaves, targets, ids)
            for beams, targets in zip(found, self.targets[:count], strict=True)
        ]
        return float(np.mean(hits))

    def _hits(self, leaves: LongArray, targets: LongArray, ids: LongArray) -> float:
        items: list[int] = []
        for leaf in leaves[leaves >= 0].tolist():
            items += self.trie.items_at(leaf).tolist()
        wanted = set(ids[self.trie.positions[targets]].tolist())
        return len(wanted.intersection(items[: self.k])) / len(wanted)


@dataclass(frozen=True, eq=False)
class ItemValidator:
    """The same for item models, whose ids are one token each, so that one pass of every user ranks
    all items. NDCG of the best `k` decides: the loss rises soon, as items that nobody took in
    training become less and less likely, while the ranking still gets better."""

    encoder: HistoryEncoder
    histories: Seq[LongArray]
    targets: Seq[LongArray]
    k: int = 20

    @torch.inference_mode()
    def __call__(self, model: Any) -> Validation:
        """The loss in nats per item, of the first target, and NDCG of all targets."""
        tokens = torch.from_numpy(self.encoder.item_tokens[:, 0].astype(np.int64)).to(model.device)
        prompts = [self.encoder.encode(history) for history in self.histories]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        loss, lists, wanted = 0.0, list[LongArray](), list[LongArray]()
        for first in range(0, len(order), _BATCH):
            users = order[first : first + _BATCH]
            lengths = torch.tensor([len(prompts[i]) for i in users])
            none = np.zeros(0, np.bool_)
            ids = padded([(prompts[i], none) for i in users])["input_ids"]
            last = torch.arange(ids.shape[1]) == lengths[:, None] - 1
            scores = scores_at(model, ids, last)[:, tokens].float().log_softmax(-1)
            best = scores.topk(min(self.k, scores.shape[1])).indices.cpu().numpy()
            for row, user in enumerate(users):
                loss -= float(scores[row, int(self.targets[user][0])])
                lists.append(best[row])
                wanted.append(self.targets[user])
        ndcg = float(find_hits(lists, wanted).ndcg(self.k).mean())
        return Validation({"valid_loss": loss / len(order), f"valid_ndcg@{self.k}": ndcg}, ndcg)


def answer_loss(model: Any, batch: dict[str, torch.Tensor], reduction: str) -> torch.Tensor:
    """Cross entropy of the answers (`labels`) after what comes before them.

    Of a language model's prompts rows that foretell no answer are most, and their scores would be
    most of the memory of a step.
    """
    labels = batch["labels"]
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    wanted[:, :-1] = labels[:, 1:] != IGNORED
    scores = scores_at(model, batch["input_ids"], wanted).float()
    known = labels[:, 1:][wanted[:, :-1]].to(scores.device)
    return cross_entropy(scores, known, reduction=reduction)


def scores_at(model: Any, input_ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`[r, V]`: the model's scores of what follows the `wanted` tokens, bool `[B, T]`, of
    `input_ids` int64 `[B, T]`, one after another. The others never meet the vocabulary."""
    device = next(iter(model.parameters())).device
    wanted = wanted.to(device)
    with _scored_only(model, wanted):
        scores = model(input_ids=input_ids.to(device), use_cache=False).logits
    return scores[wanted] if scores.ndim == 3 else scores


@contextmanager
def _scored_only(model: Any, wanted: torch.Tensor) -> Iterator[None]:
    """While it lasts, the output layer sees the rows alone that are `wanted`, bool `[B, T]`, one
    after another; where a model has no such layer, all of them, as ever."""

    def choose(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *rest = inputs
        return (hidden[wanted], *rest) if hidden.shape[:2] == wanted.shape else None

    output = getattr(model, "module", model).get_output_embeddings()
    handle = output.register_forward_pre_hook(choose) if output is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
