"""What a small sequential model, SASRec (arXiv 1808.09781), reaches.

Causal self-attention over a user's last items learns what comes after each; here with the softmax
over all items in place of sampled ones, of dot products or of cosines divided by a temperature.
Fitted to the train part, for as many epochs as are best for NDCG@20 of the valid part, and for as
many to train and valid together, unvalidated. Both predict the test part from train and valid
items, beside item-item fitted to the same. Nothing is timed but the fits. The last line is the
result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from blend import Result, gains, retriever_settings
from catalogues import Arrays, Known, Task, add_catalogue, told_of
from common import note, write_result
from torch import Tensor, nn

from draftrec.evaluate.blend import Way
from draftrec.evaluate.ranking import KS
from draftrec.items.hits import find_hits
from draftrec.items.retriever import ItemRetriever

#: Whether a user's own items are left out of the list.
WAYS = {"all items": False, "without seen items": True}
#: What is fitted to.
PARTS = ("train", "train and valid")
#: Defaults, and what they are of.
OPTIONS: dict[str, tuple[float, str | None]] = {
    "width": (64, None),
    "layers": (2, None),
    "heads": (1, None),
    "dropout": (0.4, None),
    "temperature": (0.07, "of the cosines"),
    "last": (50, "items of a history that are read"),
    "epochs": (30, "at most"),
    "patience": (3, "epochs without a better one"),
    "batch": (128, "users"),
    "lr": (1e-3, None),
}
#: Users whose lists are made together.
_LISTED = 512


class SasRec(nn.Module):
    """One embedding of items for histories and scores, one of places counted from the last item.
    `temperature`: of cosines; None for dot products."""

    def __init__(self, items: int, args: argparse.Namespace, temperature: float | None) -> None:
        super().__init__()
        self.temperature, self.drop = temperature, nn.Dropout(args.dropout)
        self.items = nn.Embedding(items, args.width)
        self.places = nn.Embedding(args.last, args.width)
        for table in (self.items, self.places):
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            args.width, args.heads, args.width, args.dropout, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(args.width)
        self.layers = nn.TransformerEncoder(layer, args.layers, norm, enable_nested_tensor=False)

    def forward(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """What comes after each item, float32 `[b, t, width]`, of int64 `[b, t]` filled up behind:
        what is filled up comes later, so that no item sees it."""
        back = (lengths[:, None] - 1 - torch.arange(histories.shape[1])).clamp(min=0)
        x = self.items(histories) * self.items.embedding_dim**0.5 + self.places(back)
        later = nn.Transformer.generate_square_subsequent_mask(histories.shape[1])
        return self.layers(self.drop(x), mask=later, is_causal=True)

    def scores(self, states: Tensor) -> Tensor:
        """The logits of all items, float32 `[n, items]`, of states `[n, width]`."""
        if self.temperature is None:
            return states @ self.items.weight.T
        unit = F.normalize(self.items.weight, dim=-1)
        return F.normalize(states, dim=-1) @ unit.T / self.temperature


def padded(rows: Arrays) -> tuple[Tensor, Tensor]:
    """int64 `[b, t]`, filled up with 0 behind, and the lengths `[b]`."""
    tensors = [torch.from_numpy(row) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths


def batches(rows: Arrays, size: int, random: np.random.Generator) -> Iterator[Arrays]:
    """All rows once, those of a batch of about the same length, so that little is filled up."""
    order = random.permutation(len(rows))
    pieces: list[list[int]] = []
    for start in range(0, len(order), 16 * size):
        near = sorted(order[start : start + 16 * size].tolist(), key=lambda at: len(rows[at]))
        pieces += [near[at : at + size] for at in range(0, len(near), size)]
    for turn in random.permutation(len(pieces)):
        yield [rows[at] for at in pieces[turn]]


def fit(
    model: SasRec, sequences: Arrays, args: argparse.Namespace, epochs: int,
    check: Callable[[], float] | None = None,
) -> list[float]:  # fmt: skip
    """Train for `epochs` over `sequences`, places int64 `[h]` each. With `check`: until none of
    the last `patience` was better; the best one's weights are kept, every one's value returned."""
    random = np.random.default_rng(args.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    rows = [row[-args.last - 1 :] for row in sequences if len(row) > 1]
    values: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(epochs):
        model.train()
        losses: list[float] = []
        for batch in batches(rows, args.batch, random):
            items, lengths = padded(batch)
            asked = torch.arange(1, items.shape[1]) < lengths[:, None]
            states = model(items[:, :-1], lengths - 1)[asked]
            with torch.autocast("cpu", torch.bfloat16):  # what costs most: users x items
                scores = model.scores(states)
            loss = F.cross_entropy(scores.float(), items[:, 1:][asked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        note(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}")
        if check is not None:
            values.append(round(check(), 6))
            note(f"valid NDCG@{max(KS)} {values[-1]:.5f}")
            if values.index(max(values)) == epoch:
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            elif epoch - values.index(max(values)) >= args.patience:
                break
    model.load_state_dict(best or model.state_dict())
    return values


@torch.no_grad()
def listed(model: SasRec, args: argparse.Namespace, task: Task, *, exclude_seen: bool) -> Way:
    """What the best items of every history find."""
    model.eval()
    lists: Arrays = []
    for start in range(0, len(task.histories), _LISTED):
        some = task.histories[start : start + _LISTED]
        items, lengths = padded([history[-args.last :] for history in some])
        scores = model.scores(model(items, lengths)[torch.arange(len(some)), lengths - 1])
        for row, history in zip(scores, some, strict=True):
            if exclude_seen:
                row[torch.from_numpy(history)] = -torch.inf
            lists.append(row.topk(max(KS)).indices.numpy())
    return Way("sasrec", None, find_hits(lists, task.targets))


def compared(ways: dict[str, Way]) -> Result:
    """Everything's figures, and what the models have over item-item, user by user."""
    over = {f"{n} over item-item": gains(ways, n, "item-item") for n in ways if n != "item-item"}
    return {"ways": {name: way.row(KS) for name, way in ways.items()}, "gains": over}


def with_history(task: Task) -> Task:
    """Those of whom something is known, short histories first, so that little is filled up."""
    lengths = np.array([len(history) for history in task.histories])
    order = [at for at in np.argsort(lengths, kind="stable") if lengths[at]]
    return Task([task.histories[at] for at in order], [task.targets[at] for at in order])


def variant(
    data: Known, args: argparse.Namespace, temperature: float | None
) -> tuple[dict[str, SasRec], Result]:
    """The models fitted to train, and to train and valid, and how the former was chosen."""
    start, valid = time.process_time(), with_history(data.valid)
    models: dict[str, SasRec] = {}
    for part in PARTS:
        torch.manual_seed(args.seed)
        models[part] = SasRec(data.items, args, temperature)

    def on_valid() -> float:
        found = listed(models["train"], args, valid, exclude_seen=args.unseen)
        return float(found.values("ndcg", max(KS)).mean())

    values = fit(models["train"], data.train, args, args.epochs, on_valid)
    epochs = 1 + values.index(max(values))
    fit(models["train and valid"], data.train_and_valid, args, epochs)
    return models, {
        "epochs": epochs,
        f"valid_ndcg@{max(KS)}": values,
        "parameters": sum(p.numel() for p in models["train"].parameters()),
        "processor_seconds": round(time.process_time() - start),
    }


def main(argv: Seq[str] | None = None) -> None:
    """Fit both variants, measure, write."""
    args = _parser().parse_args(argv)
    data = Known.read(args.sequences, args.sids)
    test, item_item = with_history(data.test), retriever_settings(args.item_item)
    kinds = {"dot products": None, "cosines": args.temperature}
    fitted = {name: variant(data, args, kind) for name, kind in kinds.items()}
    found: dict[str, Result] = {}
    for part, sequences in zip(PARTS, (data.train, data.train_and_valid), strict=True):
        items = ItemRetriever.fit(sequences, data.items, item_item)
        found[part] = {}
        for way, exclude in WAYS.items():
            ways = {name: listed(models[part], args, test, exclude_seen=exclude)
                    for name, (models, _) in fitted.items()}  # fmt: skip
            places, _ = items.propose_many(test.histories, max(KS), exclude_seen=exclude)
            lists = [row[row >= 0] for row in places]
            ways["item-item"] = Way("item-item", None, find_hits(lists, test.targets))
            found[part][way] = compared(ways)
    write_result(f"sasrec-{args.catalogue}", {
        **told_of(args),
        "settings": {
            "k": max(KS), "unseen": args.unseen, **{name: getattr(args, name) for name in OPTIONS},
            "item_item": asdict(item_item),
        },
        "variants": {name: chosen for name, (_, chosen) in fitted.items()},
        "users": len(test.targets),
        "test": found,
    }, seed=args.seed, folder=args.results)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add_catalogue(parser)
    parser.add_argument(
        "--item-item", type=Path, metavar="YAML", help="settings that `draftrec genrec tune` wrote"
    )
    parser.add_argument(
        "--unseen", action="store_true", help="choose epochs by lists without seen items"
    )
    for name, (default, told) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=told)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=None, help="folder of the result")
    return parser


if __name__ == "__main__":
    main()
