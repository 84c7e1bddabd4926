"""`draftrec sid`: give items their semantic ids."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from draftrec.cli.command import DONE, command, print_json
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
from draftrec.cli.options import (
    Idle,
    JsonOptions,
    SequenceColumnOptions,
    Sequences,
    SidsToWrite,
    TrackOptions,
    VectorColumnOptions,
)
from draftrec.config import EncoderConfig
from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError
from draftrec.items.settings import FactorSettings, QuantiseSettings, RqVaeSettings

if TYPE_CHECKING:
    from draftrec.cli.tracking import Tracker
    from draftrec.core import FloatArray
    from draftrec.items.quantise import Quantised

_LOG = logging.getLogger(__name__)
#: Of the variance of item vectors, that their rounding may be without a word.
_MOST_NOISE = 1e-3
Codes = partial(option_of, QuantiseSettings)
RqVae = partial(option_of, RqVaeSettings, note="rq-vae")
Factors = partial(option_of, FactorSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(TrackOptions, VectorColumnOptions):
    """The command line of `draftrec sid fit`."""

    vectors: str = argument(
        "ITEM_VECTORS", "Parquet with a row per item: its id, its vector.", READ
    )
    output: Place = SidsToWrite()
    levels: int = Codes("levels")
    codes: int = Codes("codes")
    method: Literal["rq-kmeans", "rq-vae"] = option(
        "Residual k-means, or an autoencoder (extra [sid]).", default="rq-kmeans"
    )
    max_load: float = Codes("max_load")
    epochs: int = RqVae("epochs")
    dim: int = RqVae("dim")
    device: str = option_of(EncoderConfig, "device", note="rq-vae")
    seed: int = Codes("seed")


_IDLE = (Idle("epochs dim device", lambda o: o.method == "rq-kmeans", "without rq-vae"),)


@command(FitOptions, idle=_IDLE, writes=["output"])
def fit(options: FitOptions) -> int:
    """Fit semantic ids to ITEM_VECTORS: close items share their first codes."""
    from draftrec.cli.tracking import tracked
    from draftrec.data.sequences import check_semantic_ids_file, write_semantic_ids
    from draftrec.data.vectors import read_item_vectors
    from draftrec.items.quantise import (
        centred,
        relative_error,
        rounding_share,
        semantic_ids,
    )

    start = time.perf_counter()
    check_semantic_ids_file(options.output)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    read = read_item_vectors(options.vectors, options.item_column, options.vector_column)
    vectors, noise = centred(read.vectors), rounding_share(read.vectors)
    with tracked(options.track, options.output, options) as tracker:
        tracker.numbers(0, {"items": len(vectors)})
        found, rebuilt = _quantise(vectors, options, tracker)
        write_semantic_ids(options.output, semantic_ids(read.items, found.codes))
        summary = {
            "items": len(read.items),
            "levels": options.levels,
            "codes": options.codes,
            "method": options.method,
            **_crowding(found),
            "reconstruction_error": round(relative_error(vectors, rebuilt), 6),
            "seconds": round(time.perf_counter() - start, 3),
            "output": str(options.output),
        }
        tracker.end(summary)
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
    if noise > _MOST_NOISE:
        _LOG.warning(
            "the vectors are so nearly constant that %.2g of their variance may be the rounding of "
            "float32: ids made of it mean little",
            min(1.0, noise),
        )
    if options.json:
        print_json(summary)
    return DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions(JsonOptions, VectorColumnOptions):
    """The command line of `draftrec sid join`."""

    sids: Place = argument("SIDS", "Semantic ids of the catalogue as it is.", READ)
    vectors: str = argument(
        "ITEM_VECTORS",
        "Parquet with the vectors of new items and of the catalogue's own.",
        READ,
    )
    output: Place = SidsToWrite()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsOptions(JsonOptions, SequenceColumnOptions):
    """The command line of `draftrec sid vectors`."""

    sequences: str = Sequences()
    output: Place = option(
        "Item vectors to write.", metavar="FILE.parquet", default=REQUIRED, place=WRITTEN
    )
    factors: int = Factors("factors")
    seed: int = Factors("seed")


@command(VectorsOptions, writes=["output"])
def vectors(options: VectorsOptions) -> int:
    """Make vectors of items from SEQUENCES: items that the same users took are near each other.

    Only what comes before the valid part is counted, so that ids made of the vectors tell nothing
    of what is to be predicted.
    """
    import numpy as np

    from draftrec.data.files.writers import replace_parquet
    from draftrec.data.sequences import read_known
    from draftrec.data.vectors import item_vectors_table
    from draftrec.items.factors import item_factors
    from draftrec.items.ids import find_ids, joined_ids

    if options.output.suffix != ".parquet":
        raise DraftrecError(f"--output {options.output} must end in .parquet")
    known = [items for items in read_known(options.sequences, "valid", options.columns())
             if len(items)]  # fmt: skip
    if not known:
        raise DraftrecError(
            f"{options.sequences} holds no items of part 'train', of which vectors could be made"
        )
    items = np.unique(joined_ids(known))
    places = [find_ids(items, history) for history in known]
    found = item_factors(places, len(items), options.factors, options.seed)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    replace_parquet(options.output, item_vectors_table(items, found))
    summary = {
        "items": len(items),
        "users": len(known),
        "dim": found.shape[1],
        "output": str(options.output),
    }
    say(
        f"{len(items):,} items as vectors of {found.shape[1]} numbers, of what {len(known):,} "
        f"users took, in {options.output}"
    )
    if options.json:
        print_json(summary)
    return DONE


#: What the `draftrec` command makes of this module.
SUBCOMMANDS: dict[str, Callable[..., int]] = {"fit": fit, "join": join, "vectors": vectors}


def _quantise(
    vectors: FloatArray, options: FitOptions, tracker: Tracker
) -> tuple[Quantised, FloatArray]:
    """The codes, and the vectors that they stand for."""
    from draftrec.items.quantise import residual_kmeans

    settings = settings_of(QuantiseSettings, options)
    if options.method == "rq-kmeans":
        found = residual_kmeans(vectors, settings)
        return found, found.vectors()
    from draftrec.models.loading import pick_device
    from draftrec.models.rq_vae import fit_rq_vae

    vae = settings_of(RqVaeSettings, options)

    def on_epoch(epochs: int, loss: float) -> None:
        tracker.now_and_then("loss", epochs, lambda: {"loss": loss})

    return fit_rq_vae(vectors, settings, vae, pick_device(options.device), on_epoch)


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
