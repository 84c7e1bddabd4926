"""`draftrec group`: decide which entities share a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer

from draftrec.cli.common import DONE, DebugOption, JsonOption, command, print_json, say
from draftrec.cli.places import READ, WRITTEN
from draftrec.data.places import Place
from draftrec.errors import DraftrecError

Argument, Option = typer.Argument, typer.Option

EntitiesArgument = Annotated[
    str, READ, Argument(metavar="ENTITIES", help="Parquet, JSONL or CSV with a row per entity.")
]
OutputOption = Annotated[
    Place, WRITTEN, Option(metavar="FILE", help="Groups file to write: .parquet, .csv or .jsonl.")
]
IdOption = Annotated[str, Option(help="Column of the entity ids.")]
ClustersOption = Annotated[int, Option(min=1, help="How many groups.")]
SeedOption = Annotated[int, Option(help="Seed of the grouping.")]


class Method(StrEnum):
    """Where item factors come from."""

    SVD = "svd"
    ALS = "als"
    BPR = "bpr"


class Side(StrEnum):
    """Whom to group."""

    USER = "user"
    ITEM = "item"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeOptions:
    """The command line of `draftrec group attribute`."""

    entities: EntitiesArgument
    column: Annotated[str, Option(metavar="NAME", help="Column whose value is the group.")]
    output: OutputOption
    map: Annotated[
        Place | None,
        READ,
        Option(
            metavar="FILE.yaml",
            help='Few groups from many values: `value: group` or `group: [values]`; "*" is the '
            "rest.",
        ),
    ] = None
    id_column: IdOption = "entity_id"
    json: JsonOption = False
    debug: DebugOption = False


@command(AttributeOptions)
def attribute(options: AttributeOptions) -> int:
    """Group ENTITIES by an attribute: a genre, a region, an age band."""
    from draftrec.data.interactions import read_attribute, read_group_map
    from draftrec.pool.groups import attribute_groups

    names = read_group_map(options.map) if options.map else None
    values = read_attribute(options.entities, options.id_column, options.column)
    return _kept(options.output, attribute_groups(values.items(), names), options.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollaborativeOptions:
    """The command line of `draftrec group collaborative`."""

    interactions: Annotated[
        str,
        READ,
        Argument(metavar="INTERACTIONS", help="Parquet, JSONL or CSV: a row per interaction."),
    ]
    output: OutputOption
    clusters: Annotated[int | None, Option(min=1, help="How many groups.")] = None
    model: Annotated[
        Place | None,
        READ,
        Option(
            metavar="FILE.npz",
            help="Assign to the groups of an earlier call instead of fitting; it leaves this file "
            "beside its groups.",
        ),
    ] = None
    factors: Annotated[int, Option(min=1, help="Numbers per item.")] = 32
    min_interactions: Annotated[
        int, Option(min=1, help="Entities with fewer get their group from --fallback, or none.")
    ] = 5
    fallback: Annotated[
        Place | None, READ, Option(metavar="FILE", help="Groups file for entities with too few.")
    ] = None
    method: Annotated[
        Method, Option(help="Item factors: svd, or als and bpr of implicit (extra [cf]).")
    ] = Method.SVD
    side: Annotated[Side, Option(help="Group users or items.")] = Side.USER
    user_column: Annotated[str, Option(help="Column of the users.")] = "user_id"
    item_column: Annotated[str, Option(help="Column of the items.")] = "item_id"
    seed: SeedOption = 0
    json: JsonOption = False
    debug: DebugOption = False


@command(CollaborativeOptions)
def collaborative(options: CollaborativeOptions) -> int:
    """Group users (or items) with similar INTERACTIONS."""
    from draftrec.data.interactions import check_groups_file, read_attribute, read_histories, turned
    from draftrec.pool.groups import FitSettings, TasteGroups, routed

    if (options.clusters is None) == (options.model is None):
        raise DraftrecError("give either --clusters to fit groups, or --model to assign to them")
    check_groups_file(options.output)
    histories = read_histories(options.interactions, options.user_column, options.item_column)
    if options.side is Side.ITEM:
        histories = turned(histories)
    if options.model is not None:
        model = TasteGroups.load(options.model)
    else:
        settings = FitSettings(
            options.clusters or 1, options.factors, options.min_interactions,
            options.method.value, options.seed,
        )  # fmt: skip
        model = TasteGroups.fit(histories, settings)
        kept = options.output.with_name(f"{options.output.name}.model.npz")
        kept.parent.mkdir(parents=True, exist_ok=True)
        model.save(kept)
        say(f"entities that come later: --model {kept}")
    groups: Mapping[str, str | None] = model.assign(histories)
    by_taste = sum(g is not None for g in groups.values())
    if options.fallback is not None:
        known = read_attribute(str(options.fallback), "entity_id", "group")
        groups = routed(groups, {e: None if g is None else str(g) for e, g in known.items()})
    return _kept(options.output, groups, options.json, {"by_taste": by_taste})


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomOptions:
    """The command line of `draftrec group random`."""

    entities: EntitiesArgument
    clusters: ClustersOption
    output: OutputOption
    id_column: IdOption = "entity_id"
    seed: SeedOption = 0
    json: JsonOption = False
    debug: DebugOption = False


@command(RandomOptions)
def random(options: RandomOptions) -> int:
    """Deal ENTITIES out at random: the control that shows what grouping is worth."""
    from draftrec.data.interactions import read_attribute
    from draftrec.pool.groups import random_groups

    entities = read_attribute(options.entities, options.id_column, None)
    groups = random_groups(entities, options.clusters, options.seed)
    return _kept(options.output, groups, options.json)


#: What the `draftrec` command makes of this module.
SUBCOMMANDS: dict[str, Callable[..., int]] = {
    "attribute": attribute,
    "collaborative": collaborative,
    "random": random,
}


def _kept(
    output: Place,
    groups: Mapping[str, str | None],
    json: bool,  # noqa: FBT001
    more: Mapping[str, Any] | None = None,
) -> int:
    """Write the groups and say how large they are."""
    from draftrec.data.interactions import write_groups

    sizes = Counter(g for g in groups.values() if g is not None)
    if not sizes:
        raise DraftrecError("no entity has a group; nothing was written")
    write_groups(output, groups)
    ordered = sorted(sizes.values())
    summary = {
        "entities": len(groups),
        "grouped": sizes.total(),
        "without_group": len(groups) - sizes.total(),
        "groups": len(sizes),
        "smallest": ordered[0],
        "median": ordered[len(ordered) // 2],
        "largest": ordered[-1],
        **(more or {}),
        "output": str(output),
    }
    say(
        f"{summary['grouped']:,} of {len(groups):,} entities in {len(sizes):,} groups of "
        f"{ordered[0]:,} to {ordered[-1]:,}, written to {output}"
    )
    if json:
        print_json(summary)
    return DONE
