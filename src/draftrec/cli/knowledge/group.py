"""`draftrec group`: decide which entities share a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from draftrec.cli.command import command, print_json, told_rejects
from draftrec.cli.knobs import (
    READ,
    REQUIRED,
    WRITTEN,
    argument,
    option,
    option_of,
    settings_of,
)
from draftrec.cli.messages import say
from draftrec.cli.options import Idle, JsonOptions, UserItemColumnOptions
from draftrec.config import RecordsConfig, Side
from draftrec.data.files.places import Place
from draftrec.data.settings import GroupSettings, Method
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.data.records import Rejects

Entities = partial(argument, "ENTITIES", "Parquet, JSONL or CSV with a row per entity.", READ)
Output = partial(
    option,
    "Groups file to write: .parquet, .csv or .jsonl.",
    metavar="FILE",
    default=REQUIRED,
    place=WRITTEN,
)
IdColumn = partial(option_of, RecordsConfig, "id_column")
Fit = partial(option_of, GroupSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeOptions(JsonOptions):
    """The command line of `draftrec group attribute`."""

    entities: str = Entities()
    column: str = option("Column whose value is the group.", metavar="NAME", default=REQUIRED)
    output: Place = Output()
    map: Place | None = option(
        'Few groups from many values: `value: group` or `group: [values]`; "*" is the rest.',
        metavar="FILE.yaml",
        place=READ,
    )
    first_of_list: bool = option(
        "Where the column holds lists: their first member, the first that --map names.",
        default=False,
    )
    id_column: str = IdColumn()


@command(AttributeOptions, writes=["output"])
def attribute(options: AttributeOptions) -> int:
    """Group ENTITIES by an attribute: a genre, a region, an age band."""
    from draftrec.data.interactions import read_attribute, read_group_map
    from draftrec.data.records import Rejects
    from draftrec.pool.groups import attribute_groups

    names = read_group_map(options.map) if options.map else None
    rejects = Rejects(options.id_column)
    values = read_attribute(options.entities, options.id_column, options.column, rejects)
    groups = attribute_groups(values.items(), names, first_of_list=options.first_of_list)
    return _kept(options.output, groups, rejects, json=options.json)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollaborativeOptions(JsonOptions, UserItemColumnOptions):
    """The command line of `draftrec group collaborative`."""

    interactions: str = argument(
        "INTERACTIONS", "Parquet, JSONL or CSV: a row per interaction.", READ
    )
    output: Place = Output()
    clusters: int | None = Fit("clusters", default=None)
    model: Place | None = option(
        "Assign to the groups of an earlier call instead of fitting; it leaves this file beside "
        "its groups.",
        metavar="FILE.npz",
        place=READ,
    )
    factors: int = Fit("factors")
    min_interactions: int = Fit("least")
    fallback: Place | None = option(
        "Groups file for entities with too few.", metavar="FILE", place=READ
    )
    method: Method = Fit("method")
    side: Side = Fit("side")
    seed: int = Fit("seed")


_IDLE = (
    Idle(
        "factors min_interactions method seed",
        lambda o: o.model is not None,
        "with --model, which was fitted with its own",
    ),
)


@command(CollaborativeOptions, idle=_IDLE, writes=["output"])
def collaborative(options: CollaborativeOptions) -> int:
    """Group users (or items) with similar INTERACTIONS."""
    from draftrec.data.files.writers import check_table_name
    from draftrec.data.interactions import read_attribute, read_histories, turned
    from draftrec.data.records import Rejects
    from draftrec.pool.groups import TasteGroups, routed

    if (options.clusters is None) == (options.model is None):
        raise DraftrecError("give either --clusters to fit groups, or --model to assign to them")
    check_table_name(options.output)
    rejects = Rejects(options.user_column if options.side == "user" else options.item_column)
    histories = read_histories(
        options.interactions, options.user_column, options.item_column, rejects
    )
    if options.side == "item":
        histories = turned(histories)
    if options.model is not None:
        model = TasteGroups.load(options.model)
    else:
        model = TasteGroups.fit(histories, settings_of(GroupSettings, options))
        kept = options.output.with_name(f"{options.output.name}.model.npz")
        kept.parent.mkdir(parents=True, exist_ok=True)
        model.save(kept)
        say(f"entities that come later: --model {kept}")
    groups: Mapping[str, str | None] = model.assign(histories)
    by_taste = sum(g is not None for g in groups.values())
    if options.fallback is not None:
        known = read_attribute(str(options.fallback), "entity_id", "group")
        fallback = {e: None if g is None else str(g) for e, g in known.items()}
        _check_fallback(options, [e for e, g in groups.items() if g is None], fallback)
        groups = routed(groups, fallback)
    return _kept(options.output, groups, rejects, {"by_taste": by_taste}, json=options.json)


def _check_fallback(
    options: CollaborativeOptions, strangers: list[str], fallback: Mapping[str, str | None]
) -> None:
    """Warn where the fallback does not know those that it is for."""
    from draftrec.data.tables.columns import Join

    example = next(iter(fallback), "")
    join = Join("entities with too few", options.interactions, str(options.fallback), example)
    for entity in strangers:
        join.saw(entity, known=entity in fallback)
    join.check(refuse=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomOptions(JsonOptions):
    """The command line of `draftrec group random`."""

    entities: str = Entities()
    clusters: int = Fit("clusters")
    output: Place = Output()
    id_column: str = IdColumn()
    seed: int = Fit("seed")


@command(RandomOptions, writes=["output"])
def random(options: RandomOptions) -> int:
    """Deal ENTITIES out at random: the control that shows what grouping is worth."""
    from draftrec.data.interactions import read_attribute
    from draftrec.data.records import Rejects
    from draftrec.pool.groups import random_groups

    rejects = Rejects(options.id_column)
    entities = read_attribute(options.entities, options.id_column, None, rejects)
    groups = random_groups(entities, options.clusters, options.seed)
    return _kept(options.output, groups, rejects, json=options.json)


#: What the `draftrec` command makes of this module.
SUBCOMMANDS: dict[str, Callable[..., int]] = {
    "attribute": attribute,
    "collaborative": collaborative,
    "random": random,
}


def _kept(
    output: Place,
    groups: Mapping[str, str | None],
    rejects: Rejects,
    more: Mapping[str, Any] | None = None,
    *,
    json: bool,
) -> int:
    """Write the groups, say how large they are, and which rows were left out."""
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
        "median": median(ordered),
        "largest": ordered[-1],
        **(more or {}),
        "rejected": len(rejects),
        "output": str(output),
    }
    say(
        f"{summary['grouped']:,} of {len(groups):,} entities in {len(sizes):,} groups of "
        f"{ordered[0]:,} to {ordered[-1]:,}, written to {output}"
    )
    code = told_rejects(rejects, output)
    if json:
        print_json(summary)
    return code
