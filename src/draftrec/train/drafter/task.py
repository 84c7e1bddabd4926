"""What a draft head is taught: to give next tokens the probabilities that the target gives them,
where it goes on from the target's last feature for several tokens.

Shapes: `B` texts, `P` rows of the longest prompt, `N` of the longest text, `K` levels, `V` draft
tokens, `M` rows that foretell tokens of texts, all texts' one after another. Row `i` of a text
foretells its token `i`, counted from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from draftrec.core import BoolArray, DoubleArray, IntArray, LongArray
from draftrec.engine.learned.head import DraftHead, unrolled
from draftrec.engine.learned.rules import penalised
from draftrec.models.drafters import OutputRows
from draftrec.train.drafter.texts import FeatureFiles, TrainingText
from draftrec.train.loop import Validation
from draftrec.train.settings import HeadSettings

Batch = dict[str, torch.Tensor]
#: Candidates among which a level's token is looked for, in validations.
CANDIDATES = 8
_MIX = 32  # texts whose lengths differ by less may share a batch


class HeadModel(nn.Module):
    """The head, and what it borrows from the target and leaves as it is."""

    def __init__(self, head: DraftHead, embedding: nn.Module, output: OutputRows) -> None:
        super().__init__()
        self.head = head
        # Not modules of its own: they are neither trained nor saved, nor moved.
        self._borrowed = embedding, output

    @property
    def device(self) -> torch.device:
        return self.head.last.weight.device

    @property
    def output(self) -> OutputRows:
        return self._borrowed[1]

    def forward(self, batch: Batch, levels: int) -> list[torch.Tensor]:
        """Features `[M, H]` of each level."""
        embedding = self._borrowed[0]
        with torch.no_grad():
            embedded = embedding(batch["ids"]).float()
            known = batch["features"].float()
            before = torch.cat([torch.zeros_like(known[:, :1]), known[:, :-1]], 1)
        first = known.shape[1] - batch["text"].shape[1]
        rows = batch["text"] >= 0
        found = unrolled(self.head, embedded, before, first, levels, batch["lead"])
        return [features[rows] for features in found]


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """What a batch's rows have seen of the draft tokens: `places`, row and token int64 `[n]` each,
    None where nothing is penalised; how often the text has each, int16 `[n]`; the penalties of
    their jobs `[n]`, as `ScoreRules` has them; the temperatures `[M, 1]`, None if all are 1.

    Few tokens of a row were seen, so scores of those alone are touched: all of them, for every
    level and both ways, would be more work than the head itself.
    """

    places: tuple[torch.Tensor, ...] | None
    counts: torch.Tensor | None
    penalties: Seq[torch.Tensor]
    temperature: torch.Tensor | None

    @classmethod
    def of(cls, batch: Batch, index: torch.Tensor, size: int) -> Seen:
        """`index` int64 `[vocabulary]`: the place of every token among the `size` draft tokens, or
        `size`."""
        rules, text = batch["rules"], batch["text"]
        rows = text >= 0
        *penalties, temperature = rules[:, None, :].expand(-1, text.shape[1], -1)[rows].unbind(1)
        heated = temperature[:, None] if bool((temperature != 1.0).any()) else None
        if not bool((rules[:, :3] != rules.new_tensor([1.0, 0.0, 0.0])).any()):
            return cls(None, None, (), heated)
        counts = _counts(batch, index, size)
        in_prompt = torch.zeros(len(text), size + 1, dtype=torch.bool, device=text.device)
        first = batch["ids"].shape[1] - text.shape[1] + 1
        prompt = index[batch["ids"][:, :first]]
        padding = torch.arange(first, device=text.device) < batch["lead"][:, None]
        in_prompt.scatter_(1, prompt.masked_fill(padding, size), True)
        seen = in_prompt[:, None, :size] | (counts > 0)
        places = seen[rows].nonzero(as_tuple=True)
        return cls(places, counts[rows][places], [it[places[0]] for it in penalties], heated)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores `[M, V]` as tokens are chosen by."""
        if self.places is not None and self.counts is not None:
            own = scores[self.places]
            every = torch.ones_like(own, dtype=torch.bool)
            lowered = penalised(own, every, self.counts, *self.penalties)
            scores = scores.index_put(self.places, lowered)
        return scores if self.temperature is None else scores / self.temperature


def _counts(batch: Batch, index: torch.Tensor, size: int) -> torch.Tensor:
    """int16 `[B, N, V]`: how often the tokens of the text before each row were each draft token."""
    text = batch["text"]
    counts = torch.zeros(*text.shape, size + 1, dtype=torch.int16, device=text.device)
    places = index[text.clamp_min(0)].masked_fill(text < 0, size)[:, :-1, None]
    counts[:, 1:].scatter_(2, places, 1)
    return counts[..., :size].cumsum(1, dtype=torch.int16)


@dataclass(eq=False)
class HeadTask:
    """The task of a head: texts, their features, and what is drafted of them.

    `tokens` int64 `[V]`: the draft tokens; `index` int64 `[vocabulary]`: the place of each token
    among them, or V; `training` and `held_out`: numbers of texts.
    """

    texts: Seq[TrainingText]
    features: FeatureFiles
    training: Seq[int]
    held_out: Seq[int]
    index: torch.Tensor
    draft_tokens: int
    settings: HeadSettings
    batch_tokens: int
    seed: int

    def steps(self) -> int:
        return len(self._cuts(self.training))

    def batches(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([self.seed, epoch])
        order, cuts = self._order(self.training, rng), self._cuts(self.training)
        for cut in rng.permutation(len(cuts)).tolist():
            yield self.batch([order[i] for i in range(*cuts[cut])])

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        """Mean over rows, weighted over levels, in nats."""
        seen = self._seen(batch)
        found = model(batch, self.settings.levels)
        return self._lost(batch, self._wanted(model, batch, seen), self._scores(model, found, seen))

    def validate(self, model: Any) -> Validation | None:
        """Tokens per call of the target for held-out texts, drafted from along their own tokens,
        the most probable token at every level; the loss; and how often each level's token is among
        the first candidates."""
        if not self.held_out:
            return None
        levels = self.settings.levels
        lost, hits, rows = 0.0, np.zeros(levels), np.zeros(levels)
        tokens = calls = 0
        order = self._order(self.held_out, np.random.default_rng(self.seed))
        for a, b in self._cuts(self.held_out):
            batch = self.batch([order[i] for i in range(a, b)])
            loss, first, among = self._judged(
                model, {n: v.to(model.device) for n, v in batch.items()}
            )
            lost += (b - a) * loss
            place = _place(batch).numpy()
            for level in range(levels):
                hits[level] += among[level][place >= level].sum()
                rows[level] += (place >= level).sum()
            for right in np.split(first, np.flatnonzero(place == 0)[1:], axis=1):
                tokens += right.shape[1]
                calls += target_calls(right)
        recall = hits / np.maximum(rows, 1)
        figures = {
            "valid_tokens_per_call": tokens / calls,
            "valid_loss": lost / len(self.held_out),
            **{f"valid_top{CANDIDATES}_{i + 1}": float(it) for i, it in enumerate(recall)},
        }
        return Validation(figures, figures["valid_tokens_per_call"])

    @torch.inference_mode()
    def probabilities(self, model: Any, number: int) -> DoubleArray:
        """float64 `[K, n, V]`: what each level says along a text of n tokens, row i of its token
        i."""
        batch = {name: x.to(model.device) for name, x in self.batch([number]).items()}
        scores = self._scores(model, model(batch, self.settings.levels), self._seen(batch))
        return torch.stack([x.softmax(-1).double() for x in scores]).cpu().numpy()

    @torch.inference_mode()
    def _judged(self, model: Any, batch: Batch) -> tuple[float, BoolArray, BoolArray]:
        """The loss; bool `[K, M]` both: is the row's token the level's first choice, is it among
        its first candidates."""
        seen, labels = self._seen(batch), self._labels(batch)
        scores = list(self._scores(model, model(batch, self.settings.levels), seen))
        loss = float(self._lost(batch, self._wanted(model, batch, seen), scores))
        most = min(CANDIDATES, self.draft_tokens)
        same = torch.stack([it.topk(most, -1).indices == labels[:, None] for it in scores])
        return loss, same[..., 0].cpu().numpy(), same.any(-1).cpu().numpy()

    def _scores(self, model: Any, found: Seq[torch.Tensor], seen: Seen) -> Iterator[torch.Tensor]:
        """`[M, V]` of each level, as tokens are chosen by."""
        output = _output(model)
        return (seen(output(features).float()) for features in found)

    def _lost(self, batch: Batch, wanted: Wanted, scores: Iterable[torch.Tensor]) -> torch.Tensor:
        place, total, weights = _place(batch), batch["rules"].new_zeros(()), 0.0
        for level, drafted in enumerate(scores):
            counted = wanted.counted & (place >= level)
            mean = wanted.losses(drafted)[counted].sum() / counted.sum().clamp_min(1)
            weight = self.settings.decay**level
            total, weights = total + weight * mean, weights + weight
        return total / weights

    def batch(self, numbers: Seq[int]) -> Batch:
        """Texts side by side, their first tokens in one column: prompts are padded on the left,
        texts on the right.

        `ids` int64 `[B, P + N - 1]` and `features` of the same rows `[B, P + N - 1, H]`, `text`
        int64 `[B, N]`, -1 behind a text's end, `lead` int64 `[B]`: padding before a prompt, `rules`
        float32 `[B, 4]`.
        """
        chosen = [self.texts[i] for i in numbers]
        prompt = max(it.first for it in chosen)
        longest = max(len(it.ids) - it.first for it in chosen)
        ids = torch.zeros(len(chosen), prompt + longest - 1, dtype=torch.int64)
        text = torch.full((len(chosen), longest), -1)
        features: torch.Tensor | None = None
        for row, (number, it) in enumerate(zip(numbers, chosen, strict=True)):
            known, lead = self.features[number], prompt - it.first
            if features is None:
                features = known.new_zeros(*ids.shape, known.shape[1])
            own = torch.from_numpy(it.ids).long()
            ids[row, lead : lead + len(own) - 1] = own[:-1]
            text[row, : len(own) - it.first] = own[it.first :]
            features[row, lead : lead + len(known)] = known
        assert features is not None
        rules = [
            (r.repetition, r.presence, r.frequency, r.temperature)
            for r in (it.rules for it in chosen)
        ]
        return {
            "ids": ids,
            "features": features,
            "text": text,
            "lead": torch.tensor([prompt - it.first for it in chosen]),
            "rules": torch.tensor(rules, dtype=torch.float32),
        }

    def _seen(self, batch: Batch) -> Seen:
        return Seen.of(batch, self.index.to(batch["text"].device), self.draft_tokens)

    def _labels(self, batch: Batch) -> torch.Tensor:
        """int64 `[M]`: the place of each row's token among the draft tokens, or V."""
        text = batch["text"]
        return self.index.to(text.device)[text[text >= 0]]

    def _wanted(self, model: Any, batch: Batch, seen: Seen) -> Wanted:
        labels = self._labels(batch)
        if self.settings.loss == "ce":
            return Wanted(labels < self.draft_tokens, labels.clamp_max(self.draft_tokens - 1))
        with torch.no_grad():
            own = batch["features"][:, -batch["text"].shape[1] :][batch["text"] >= 0]
            scores = seen(_output(model)(own.float()).float())
            log_p = scores.log_softmax(-1)
            p = log_p.exp()
            entropy = -(p * log_p.clamp_min(-1e4)).sum(-1)
        return Wanted(torch.ones_like(labels, dtype=torch.bool), p, entropy)

    def _sizes(self, numbers: Seq[int]) -> tuple[LongArray, LongArray]:
        """int64: tokens of prompts and of texts, in steps."""
        prompts = np.array([self.texts[i].first for i in numbers], np.int64)
        texts = np.array([len(self.texts[i].ids) for i in numbers], np.int64) - prompts
        return -(-prompts // _MIX) * _MIX, -(-texts // _MIX) * _MIX

    def _order(self, numbers: Seq[int], rng: np.random.Generator) -> list[int]:
        """Texts of about equal lengths together, otherwise in random order."""
        prompts, texts = self._sizes(numbers)
        by = np.lexsort((rng.random(len(numbers)), prompts, texts))
        return [numbers[i] for i in by.tolist()]

    def _cuts(self, numbers: Seq[int]) -> list[tuple[int, int]]:
        """Ranges of the order that make a batch each, the same every time."""
        prompts, texts = self._sizes(numbers)
        by = np.lexsort((prompts, texts))
        found: list[tuple[int, int]] = []
        first = longest = 0
        for i, at in enumerate(by.tolist()):
            longest = max(longest, int(prompts[at])) if i > first else int(prompts[at])
            if i > first and (i + 1 - first) * (longest + int(texts[at])) > self.batch_tokens:
                found.append((first, i))
                first, longest = i, int(prompts[at])
        return [*found, (first, len(numbers))]


@dataclass(frozen=True, eq=False, slots=True)
class Wanted:
    """What rows are to foretell: `aim` int64 `[M]`, a draft token each, or float32 `[M, V]`, the
    probabilities, of `entropy` `[M]`. `counted` bool `[M]`: rows that have any."""

    counted: torch.Tensor
    aim: torch.Tensor
    entropy: torch.Tensor | None = None

    def losses(self, scores: torch.Tensor) -> torch.Tensor:
        """`[M]` of scores `[M, V]`: cross entropy, or the KL divergence from the probabilities."""
        found = cross_entropy(scores, self.aim, reduction="none")
        return found if self.entropy is None else found - self.entropy


def _output(model: Any) -> OutputRows:
    return getattr(model, "module", model).output  # accelerate may have wrapped it


def _place(batch: Batch) -> torch.Tensor:
    """int64 `[M]`: the place of each row in its text."""
    text = batch["text"]
    return torch.arange(text.shape[1], device=text.device).expand_as(text)[text >= 0]


def target_calls(right: BoolArray) -> int:
    """Calls of the target for a text of `n` tokens, of which K are drafted before each but the
    first: bool `[K, n]` says whether level j, where the target was last asked j rows before, has
    the token of the row."""
    levels, n = right.shape
    calls, at = 1, 1  # the prompt's pass gives the first token
    while at < n:
        taken = 0
        while taken < levels and at + taken < n and right[taken, at + taken]:
            taken += 1
        calls, at = calls + 1, at + taken + 1
    return calls


def draft_vocabulary(texts: Seq[TrainingText], ends: Seq[int], size: int) -> IntArray:
    """int32 `[V]`, V at most `size`: the tokens that texts use most, most frequent first (FR-Spec,
    arXiv 2502.14856), then those of their prompts; equal ones by id. What ends texts comes first.
    """
    count = 1 + max(*(int(it.ids.max()) for it in texts), *ends)
    in_texts, in_prompts = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for it in texts:
        np.add.at(in_texts, it.ids[it.first :], 1)
        np.add.at(in_prompts, it.ids[: it.first], 1)
    in_texts[list(ends)] += 1 << 40
    order = np.lexsort((-in_prompts, -in_texts))  # is stable, so equal ones stay in order
    return order[(in_texts + in_prompts)[order] > 0][:size].astype(np.int32)
