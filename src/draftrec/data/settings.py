"""What becomes of interactions: sequences, samples, groups. Apart from what does it, which loads
NumPy and Arrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from draftrec.config import Side, Size
from draftrec.knobs import knob

Way = Literal["leave-one-out", "time"]
Repeats = Literal["keep", "first", "last", "moment"]
Ties = Literal["file", "random"]
Split = Literal["user", "time"]
Method = Literal["svd", "als", "bpr"]


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """How interactions become sequences, in this order:

    a user's interactions of one moment come as in the file, or as `seed` decides (`ties`); those
    rated below `min_rating`, or not at all, go (None: none does), and those from `until` on; of a
    user's `repeats` with an item all are kept, or the first or the last in time, or one of each
    moment; users and items with fewer interactions than `min_interactions` (None: 3 for
    leave-one-out, else 1) and `min_item_interactions` go, until all that are left have as many;
    then they are parted as `way` says.

    leave-one-out: a user's last item tests, the one before it validates, the others train; users
    with fewer than 3 only train. time: what happened from `test_from` on tests, from `valid_from`
    on validates (as in the file, or seconds since 1970); None: quantiles of all times, so that
    `valid_share` and `test_share` of the interactions validate and test.
    """

    way: Annotated[
        Way,
        knob(
            "leave-one-out: a user's last item tests, the one before it validates; time: what came "
            "last of all tests."
        ),
    ] = "leave-one-out"
    min_interactions: Annotated[
        Size | None, knob("Leave out users with fewer.", unset="3 for leave-one-out, else 1")
    ] = None
    min_item_interactions: Annotated[
        int, knob("Leave out items with fewer; 5 and 5 make a 5-core.", ge=1)
    ] = 1
    repeats: Annotated[
        Repeats,
        knob("Of a user's interactions with one item: all, the first, the last, one of a moment."),
    ] = "keep"
    min_rating: Annotated[
        float | None, knob("Leave out interactions that are rated lower, or not at all.")
    ] = None
    until: Annotated[float | None, knob("Only interactions before this time, or date.")] = None
    ties: Annotated[
        Ties, knob("Order of a user's interactions of one moment: the file's, or drawn.")
    ] = "file"
    seed: Annotated[int, knob("Seed of the order drawn for --ties random.", ge=0)] = 0
    valid_from: Annotated[float | None, knob("time: validate from this time, or date, on.")] = None
    test_from: Annotated[float | None, knob("time: test from this time, or date, on.")] = None
    valid_share: Annotated[
        float, knob("time: share that validates, without --test-from.", ge=0, le=1)
    ] = 0.1
    test_share: Annotated[
        float, knob("time: share that tests, without --test-from.", ge=0, le=1)
    ] = 0.1

    @property
    def fewest(self) -> int:
        """The fewest interactions of a user who stays."""
        return self.min_interactions or (3 if self.way == "leave-one-out" else 1)


@dataclass(frozen=True, slots=True)
class CutSettings:
    """`history` H: most events in front of the cut. `positive`: ratings from here on are clicks;
    None: as `data.events.positive_of` has it.
    `sequence` L: length of the behaviour sequence. `negatives`: unseen items drawn per click.
    `split`: test on other users, or on later events. `fold` 0 to 9: which tenth of the users is the
    test part of a split by user; over all folds each user is tested once."""

    history: Annotated[int, knob("Most events of a user before the cut.", ge=1)] = 30
    positive: Annotated[
        float | None,
        knob("Ratings from here on count as clicks [default: 4; 1 for booleans and 0/1]."),
    ] = None
    sequence: Annotated[int, knob("Clicked items a model sees of a user.", ge=1)] = 5
    negatives: Annotated[int, knob("Items the user never took, drawn for each click.", ge=0)] = 0
    seed: Annotated[int, knob("Seed of the drawn items.")] = 0
    split: Annotated[
        Split, knob("Validate and test on other users (8:1:1), or on the last 20 % of time.")
    ] = "user"
    fold: Annotated[
        int, knob("Split by user: which tenth of the users is tested on.", ge=0, le=9)
    ] = 0


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """Records of users or items, made of interactions and items."""

    side: Annotated[Side, knob("Records of users, with histories, or of items.")] = "user"
    history: Annotated[int, knob("user: the latest items in a history.", ge=1)] = 30


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """`clusters` groups of entities with at least `least` interactions; `factors` numbers each."""

    clusters: Annotated[int, knob("How many groups.", ge=1)]
    factors: Annotated[int, knob("Numbers per item.", ge=1)] = 32
    least: Annotated[
        int, knob("Entities with fewer get their group from --fallback, or none.", ge=1)
    ] = 5
    method: Annotated[
        Method, knob("Item factors: svd, or als and bpr of implicit (extra [cf]).")
    ] = "svd"
    seed: Annotated[int, knob("Seed of the grouping.")] = 0
    side: Annotated[Side, knob("Group users or items.")] = "user"
