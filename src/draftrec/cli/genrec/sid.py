"""`draftrec sid`: give items their semantic ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrec.cli.common import DONE, DebugOption, JsonOption, command, print_json, say
from draftrec.cli.options.columns import ItemVectorColumn, VectorColumn
from draftrec.cli.options.idle import Idle
from draftrec.cli.options.places import READ, WRITTEN
from draftrec.data.files.places import Place

if TYPE_CHECKING:
    from draftrec.core import FloatArray
    from draftrec.items.quantise import Quantised

_LOG = logging.getLogger(__name__)
Argument, Option = typer.Argument, typer.Option


class Method(StrEnum):
    """How codes are found."""

    RQ_KMEANS = "rq-kmeans"
    RQ_VAE = "rq-vae"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """The command line of `draftrec sid fit`."""

    vectors: Annotated[
        str,
        READ,
        Argument(metavar="ITEM_VECTORS", help="Parquet with a row per item: its id, its vector."),
    ]
    output: Annotated[
        Place, WRITTEN, Option(metavar="FILE", help="Semantic ids to write: .parquet or .jsonl.")
    ]
    levels: Annotated[int, Option(min=1, max=26, help="Codes per item.")] = 4
    codes: Annotated[int, Option(min=2, max=65536, help="Codes to choose from per level.")] = 256
    method: Annotated[Method, Option(help="Residual k-means, or an autoencoder (extra [sid]).")] = (
        Method.RQ_KMEANS
    )
    max_load: Annotated[
        float,
        Option(min=1.0, help="No code of a level gets more than this times its even share."),
    ] = 1.5
    epochs: Annotated[int, Option(min=1, help="rq-vae: passes over all vectors.")] = 100
    dim: Annotated[int, Option(min=1, help="rq-vae: numbers per latent vector.")] = 32
    device: Annotated[str, Option(help="rq-vae: auto, cpu, cuda or cuda:<i>.")] = "auto"
    item_column: ItemVectorColumn = None
    vector_column: VectorColumn = None
    seed: Annotated[int, Option(min=0, help="Seed of the fit.")] = 0
    json: JsonOption = False
    debug: DebugOption = False


_IDLE = (Idle("epochs dim device", lambda o: o.method is Method.RQ_KMEANS, "without rq-vae"),)


@command(FitOptions, idle=_IDLE, writes=["output"])
def fit(options: FitOptions) -> int:
    """Fit semantic ids to ITEM_VECTORS: close items share their first codes."""
    from draftrec.data.sequences import check_semantic_ids_file, write_semantic_ids
    from draftrec.data.vectors import read_item_vectors
    from draftrec.items.quantise import centred, relative_error, semantic_ids

    start = time.perf_counter()
    check_semantic_ids_file(options.output)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    read = read_item_vectors(options.vectors, options.item_column, options.vector_column)
    vectors = centred(read.vectors)
    found, rebuilt = _quantise(vectors, options)
    write_semantic_ids(options.output, semantic_ids(read.items, found.codes))
    summary = {
        "items": len(read.items),
        "levels": options.levels,
        "codes": options.codes,
        "method": options.method.value,
        **_crowding(found),
        "reconstruction_error": round(relative_error(vectors, rebuilt), 6),
        "seconds": round(time.perf_counter() - start, 3),
        "output": str(options.output),
    }
    say(
        f"{summary['items']:,} items have {summary['unique']:,} different semantic ids "
        f"({summary['moved']:,} moved to a free code, {summary['collisions']:,} share theirs), "
        f"written to {options.output}"
    )
    if 2 * found.moved > len(read.items):
        _LOG.warning(
            "codes changed %s times to keep %s items apart, so that they mean little: the "
            "vectors are too alike, or it needs more --levels, --codes or --epochs",
            f"{found.moved:,}",
            f"{len(read.items):,}",
        )
    if options.json:
        print_json(summary)
    return DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """The command line of `draftrec sid join`."""

    sids: Annotated[
        Place, READ, Argument(metavar="SIDS", help="Semantic ids of the catalogue as it is.")
    ]
    vectors: Annotated[
        str,
        READ,
        Argument(
            metavar="ITEM_VECTORS",
            help="Parquet with the vectors of new items and of the catalogue's own.",
        ),
    ]
    output: Annotated[
        Place, WRITTEN, Option(metavar="FILE", help="Semantic ids to write: .parquet or .jsonl.")
    ]
    item_column: ItemVectorColumn = None
    vector_column: VectorColumn = None
    json: JsonOption = False
    debug: DebugOption = False


@command(JoinOptions, writes=["output"])
def join(options: JoinOptions) -> int:
    """Give new items ids made of the catalogue's own codes: models go on as they are.

    No id changes and no token is added, whoever made SIDS. Where codes mean little to the new items
    (another kind of goods), fit all of them afresh and train again.
    """
    import numpy as np

    from draftrec.data.sequences import (
        check_semantic_ids_file,
        read_semantic_ids,
        write_semantic_ids,
    )
    from draftrec.data.vectors import read_item_vectors
    from draftrec.items.quantise import centred
    from draftrec.items.semantic_ids import joined

    check_semantic_ids_file(options.output)
    before = read_semantic_ids(options.sids)
    read = read_item_vectors(options.vectors, options.item_column, options.vector_column)
    after, new = joined(before, read.items, centred(read.vectors))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_semantic_ids(options.output, after)
    tuples, counts = np.unique(after.codes, axis=0, return_counts=True)
    summary = {
        "items": len(after),
        "joined": len(new),
        "unique": len(tuples),
        "collisions": int(counts[counts > 1].sum()),
        "without_vectors": len(before) - (len(read.items) - len(new)),
        "output": str(options.output),
    }
    say(
        f"{len(new):,} items joined {len(before):,}, written to {options.output}; codes were "
        f"understood from {len(read.items) - len(new):,} items with vectors"
    )
    if options.json:
        print_json(summary)
    return DONE


#: What the `draftrec` command makes of this module.
SUBCOMMANDS: dict[str, Callable[..., int]] = {"fit": fit, "join": join}


def _quantise(vectors: FloatArray, options: FitOptions) -> tuple[Quantised, FloatArray]:
    """The codes, and the vectors that they stand for."""
    from draftrec.items.quantise import QuantiseSettings, residual_kmeans

    settings = QuantiseSettings(options.levels, options.codes, options.max_load, seed=options.seed)
    if options.method is Method.RQ_KMEANS:
        found = residual_kmeans(vectors, settings)
        return found, found.vectors()
    from draftrec.models.loading import pick_device
    from draftrec.models.rq_vae import RqVaeSettings, fit_rq_vae

    vae = RqVaeSettings(dim=options.dim, epochs=options.epochs)
    return fit_rq_vae(vectors, settings, vae, pick_device(options.device))


def _crowding(found: Quantised) -> dict[str, Any]:
    """How many items share their semantic id, and how many codes are in use."""
    import numpy as np

    from draftrec.items.trie import ItemTrie

    trie = ItemTrie.build(np.arange(len(found.codes)), found.codes)
    sizes = np.diff(trie.item_start)
    return {
        "unique": trie.leaves,
        "collisions": int(sizes[sizes > 1].sum()),
        "largest_collision": int(sizes.max()),
        "moved": found.moved,
        "codes_used": [len(np.unique(found.codes[:, i])) for i in range(found.codes.shape[1])],
    }
