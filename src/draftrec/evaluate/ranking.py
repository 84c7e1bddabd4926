"""How good recommended lists are: Recall@K and NDCG@K, in the two definitions in use.

*multi*: AtSpeed's (arXiv 2410.05165). A user's targets T are all items of the part;
Recall@K = hits / |T|, NDCG@K = DCG / IDCG with the IDCG cut at min(|T|, K).
*single*: LC-Rec's (arXiv 2311.09049) and that of most leave-one-out evaluations. The first target
alone counts: Recall@K is hit@K, NDCG@K is 1 / log2(rank + 1).
Both are means over users who have targets. An item listed twice counts where it comes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from draftrec.data.sequences import USUAL, SequenceColumns, read_histories
from draftrec.data.tables.columns import (
    ITEM,
    ITEMS,
    USER,
    candidates,
    cell_id,
    cell_ids,
    need_columns,
    spelt_list,
)
from draftrec.data.tables.readers import Row, open_records
from draftrec.errors import DraftrecError
from draftrec.evaluate.settings import Definition, RankingRun
from draftrec.items.hits import Hits, Lists, find_hits
from draftrec.items.ids import Id, Ids, plain

#: The list lengths that papers report.
KS = RankingRun.ks

#: Stands where a list has null, a sequence of tokens that is no item: a miss.
_NO_ITEM = -(2**63)


@dataclass(frozen=True, slots=True)
class RankingScores:
    """Means over `users`, by K. `short_lists`: users with fewer items than the largest K, whose
    missing places count as misses."""

    definition: Definition
    users: int
    short_lists: int
    recall: Mapping[int, float]
    ndcg: Mapping[int, float]

    def summary(self) -> dict[str, Any]:
        """`recall@k` and `ndcg@k` for each K, beside the rest, as one flat dictionary."""
        figures = {f"recall@{k}": value for k, value in self.recall.items()}
        figures |= {f"ndcg@{k}": value for k, value in self.ndcg.items()}
        return {
            "definition": self.definition,
            "users": self.users,
            "short_lists": self.short_lists,
            **figures,
        }


def multi_target(recommended: Lists, targets: Lists, ks: Seq[int] = KS) -> RankingScores:
    """AtSpeed's Recall@K and NDCG@K: every target counts. Raises as `find_hits` does."""
    return _scores("multi", find_hits(recommended, targets), ks)


def single_target(recommended: Lists, targets: Lists, ks: Seq[int] = KS) -> RankingScores:
    """LC-Rec's hit@K and NDCG@K: the first target counts alone. Raises as `find_hits` does."""
    return _scores("single", find_hits(recommended, [t[:1] for t in targets]), ks)


def ranking_scores(
    recommended: Lists, targets: Lists, ks: Seq[int], definition: Definition
) -> RankingScores:
    """`multi_target` or `single_target`, by name."""
    score = {"multi": multi_target, "single": single_target}[definition]
    return score(recommended, targets, ks)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of a file of recommendations, and who is not in them: users of the file
    `without_targets`, and users with targets `without_list`."""

    scores: RankingScores
    part: str
    without_targets: int
    without_list: int

    def summary(self) -> dict[str, Any]:
        """Everything as one flat dictionary, with the contract's `recall@k`, `ndcg@k`, `users`."""
        return {
            "part": self.part,
            **self.scores.summary(),
            "users_without_targets": self.without_targets,
            "users_without_list": self.without_list,
        }


def evaluate_recommendations(
    recommendations: str | Path,
    sequences: str | Path,
    *,
    ks: Seq[int] = KS,
    part: str = "test",
    definition: Definition = "multi",
    columns: SequenceColumns = USUAL,
) -> Evaluation:
    """Compare a file of recommendations (`user`, `items`) with what users took in `part`.

    Only users who have both a list and targets are scored. Raises DraftrecError for files that
    cannot be read, a user with two lists, no user to score, and a K longer than every list.
    """
    lists = read_lists(recommendations, columns)
    histories = read_histories(sequences, part, 0, columns)
    scored = [h for h in histories if plain(h.user) in lists]
    if not scored:
        raise DraftrecError(
            f"no user of {recommendations} has items of part {part!r} in {sequences}; evaluate "
            "with the sequences, and the part, that were recommended for"
        )
    longest = max(len(lists[plain(h.user)]) for h in scored)
    if longest < max(ks):
        raise DraftrecError(
            f"{recommendations} lists at most {longest} items for a user, too few for k = "
            f"{max(ks)}; recommend with -k {max(ks)}, or evaluate a smaller k"
        )
    targets = [h.targets for h in scored]
    return Evaluation(
        ranking_scores([lists[plain(h.user)] for h in scored], targets, ks, definition),
        part,
        len(lists) - len(scored),
        len(histories) - len(scored),
    )


def read_lists(location: str | Path, columns: SequenceColumns = USUAL) -> dict[Id, Ids]:
    """User -> recommended items `[m]`, best first, from the columns `user` and `items`. Users whose
    ids are texts that spell whole numbers are named by these.

    Raises DraftrecError for missing columns, unusable rows and a user who is listed twice.
    """
    source = open_records(location)
    wanted = [(USER.called("user"), columns.user), (ITEMS, columns.items)]
    one_each = not (columns.items or candidates(source, ITEMS)) and candidates(source, ITEM)
    names = need_columns(
        source,
        wanted,
        "a row per user with the list of items is read, so gather the rows of a user, best first"
        if one_each
        else "name a file that `draftrec genrec recommend` wrote",
    )
    found: dict[Id, Ids] = {}
    for row in source.rows(names):
        user = plain(cell_id(row, names[0], typed=True))
        if user in found:
            raise DraftrecError(
                f"{row.file} line {row.line}: user {user} has a list before; keep one of them"
            )
        found[user] = _list_of(row, names[1], typed=source.typed)
    return found


def _list_of(row: Row, column: str, *, typed: bool) -> Ids:
    """A list in which null is no item."""
    values = row.values.get(column)
    if isinstance(values, str):
        listed = spelt_list(values)
        values, typed = (values, typed) if listed is None else (listed, False)
    if isinstance(values, list) and None in values:
        texts = any(isinstance(value, str) for value in values)
        no_item = " " if texts else _NO_ITEM
        values = [no_item if value is None else value for value in values]
    return cell_ids(replace(row, values={column: values}), column, typed=typed)


def _scores(definition: Definition, hits: Hits, ks: Seq[int]) -> RankingScores:
    ordered = sorted(set(ks))
    if not ordered or ordered[0] < 1:
        raise ValueError(f"list lengths must be positive, not {list(ks)}")
    return RankingScores(
        definition,
        len(hits.targets),
        int((hits.lengths < ordered[-1]).sum()),
        {k: float(hits.recall(k).mean()) for k in ordered},
        {k: float(hits.ndcg(k).mean()) for k in ordered},
    )
