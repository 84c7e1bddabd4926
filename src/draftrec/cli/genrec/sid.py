"""`draftrec sid`: give items their semantic ids."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
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
    from draftrec.items.ids import Ids
    from draftrec.items.quantise import Quantised
    from draftrec.items.side_by_side import Kind, Share

_LOG = logging.getLogger(__name__)
#: Of the variance of item vectors, that their rounding may be without a word.
_MOST_NOISE = 1e-3
Codes = partial(option_of, QuantiseSettings)
RqVae = partial(option_of, RqVaeSettings, note="rq-vae")
Factors = partial(option_of, FactorSettings)
Weights = partial(
    option,
    "Of several kinds of vectors: what each counts in squared distances, as in 2,1.",
    metavar="W,W,...",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions(TrackOptions, VectorColumnOptions):
    """The command line of `draftrec sid fit`."""

    vectors: list[str] = argument(
        "ITEM_VECTORS",
        "Parquet with a row per item: its id, its vector. Several kinds of vectors, a file each, "
        "are brought to one scale and set side by side.",
        READ,
    )
    output: Place = SidsToWrite()
    weights: str | None = Weights(show_default="1 each")
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


_ALONE = Idle("weights", lambda o: len(o.vectors) == 1, "with one file of vectors")
_IDLE = (Idle("epochs dim device", lambda o: o.method == "rq-kmeans", "without rq-vae"), _ALONE)


@command(FitOptions, idle=_IDLE, writes=["output"])
def fit(options: FitOptions) -> int:
    """Fit semantic ids to ITEM_VECTORS: close items share their first codes."""
    from draftrec.cli.tracking import tracked
    from draftrec.data.sequences import check_semantic_ids_file, write_semantic_ids
    from draftrec.data.vectors import read_kinds
    from draftrec.items.quantise import relative_error, semantic_ids

    start = time.perf_counter()
    check_semantic_ids_file(options.output)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    weights = _weights(options.weights, len(options.vectors))
    kinds = read_kinds(options.vectors, weights, options.item_column, options.vector_column)
    items, vectors, several = _together(kinds)
    shares = [kind.share for kind in kinds] if several else []
    with tracked(options.track, options.output, options) as tracker:
        tracker.numbers(0, {"items": len(vectors)})
        found, rebuilt = _quantise(vectors, options, tracker)
        write_semantic_ids(options.output, semantic_ids(items, found.codes), shares)
        summary = {
            "items": len(items),
            **several,
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
    if 2 * found.moved > len(items):
        _LOG.warning(
            "codes changed %s times to keep %s items apart, so that they mean little: the "
            "vectors are too alike, or it needs more --levels, --codes or --epochs",
            f"{found.moved:,}",
            f"{len(items):,}",
        )
    _warn_of_noise(kinds)
    if options.json:
        print_json(summary)
    return DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions(JsonOptions, VectorColumnOptions):
    """The command line of `draftrec sid join`."""

    sids: Place = argument("SIDS", "Semantic ids of the catalogue as it is.", READ)
    vectors: list[str] = argument(
        "ITEM_VECTORS",
        "Parquet with the vectors of new items and of the catalogue's own; as many kinds as sid "
        "fit was given, in that order.",
        READ,
    )
    output: Place = SidsToWrite()
    weights: str | None = Weights(show_default="as in sid fit, or 1 each")


@command(JoinOptions, idle=(_ALONE,), writes=["output"], contains=["sids"])
def join(options: JoinOptions) -> int:
    """Give new items ids made of the catalogue's own codes: models go on as they are.

    No id changes and no token is added, whoever made SIDS. Where codes mean little to the new items
    (another kind of goods), fit all of them afresh and train again.
    """
    import numpy as np

    from draftrec.data.sequences import (
        check_semantic_ids_file,
        read_semantic_ids,
        read_shares,
        write_semantic_ids,
    )
    from draftrec.data.vectors import read_kinds
    from draftrec.items.semantic_ids import joined

    check_semantic_ids_file(options.output)
    before = read_semantic_ids(options.sids)
    shares = read_shares(options.sids)
    weights = _weights_to_join(options, shares)
    kinds = read_kinds(options.vectors, weights, options.item_column, options.vector_column)
    _check_dims(options.sids, kinds, shares)
    items, vectors, several = _together(kinds, before.items)
    after, new = joined(before, items, vectors)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_semantic_ids(options.output, after, shares)
    tuples, counts = np.unique(after.codes, axis=0, return_counts=True)
    summary = {
        "items": len(after),
        **several,
        "joined": len(new),
        "unique": len(tuples),
        "collisions": int(counts[counts > 1].sum()),
        "without_vectors": len(before) - (len(items) - len(new)),
        "output": str(options.output),
    }
    say(
        f"{len(new):,} items joined {len(before):,}, written to {options.output}; codes were "
        f"understood from {len(items) - len(new):,} items with vectors"
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
    if len(items) < 2:
        raise DraftrecError(
            f"{options.sequences} holds one item in part 'train', {items[0]}, which nothing can be "
            "near to; give sequences of several items"
        )
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


def _together(
    kinds: Seq[Kind], measured: Ids | None = None
) -> tuple[Ids, FloatArray, dict[str, Any]]:
    """The items `[n]`, their vectors float32 `[n, d]`, centred, and what the summary says of
    several kinds: these stand side by side (see there), and a warning names each that does not know
    all items."""
    from draftrec.items.quantise import centred
    from draftrec.items.side_by_side import side_by_side

    if len(kinds) == 1:
        return kinds[0].items, centred(kinds[0].vectors), {}
    found = side_by_side(kinds, measured)
    told: list[dict[str, Any]] = []
    for kind, known in zip(kinds, found.known, strict=True):
        missing = found.items[~known]
        if len(missing):
            _LOG.warning(
                "%s has no vectors of %s of %s items, such as %s: as far as it goes, they are "
                "taken for average ones",
                kind.name,
                f"{len(missing):,}",
                f"{len(found.items):,}",
                missing[0],
            )
        share = kind.share
        told.append({"vectors": kind.name, "dim": share.dim, "weight": share.weight,
                     "missing": len(missing)})  # fmt: skip
    return found.items, centred(found.vectors), {"kinds": told}


def _weights(given: str | None, files: int) -> list[float]:
    """A weight for each of so many files. Raises DraftrecError for other numbers of them."""
    if given is None:
        return [1.0] * files
    try:
        found = [float(word) for word in given.split(",")]
    except ValueError:
        found = []
    if len(found) != files or not all(0 < weight < math.inf for weight in found):
        raise DraftrecError(
            f"--weights must be as many numbers above 0 as there are files of vectors ({files}), "
            f"with commas between them, not {given!r}"
        )
    return found


def _weights_to_join(options: JoinOptions, shares: Seq[Share]) -> list[float]:
    """Those that the ids were made with, where that is known."""
    files = len(options.vectors)
    if shares and len(shares) != files:
        dims = " and ".join(str(share.dim) for share in shares)
        raise DraftrecError(
            f"{options.sids} was made of {len(shares)} kinds of vectors, of {dims} numbers, and "
            f"not of {files}; give a file of each, in that order"
        )
    given = _weights(options.weights, files)
    kept = [share.weight for share in shares]
    if kept and options.weights is not None and given != kept:
        words = ",".join(f"{weight:g}" for weight in kept)
        raise DraftrecError(
            f"{options.sids} was made with --weights {words}; leave --weights out, and they are "
            "taken"
        )
    return kept or given


def _check_dims(sids: Place, kinds: Seq[Kind], shares: Seq[Share]) -> None:
    """Refuse vectors of other kinds than `shares`, or in another order."""
    for place, (kind, share) in enumerate(zip(kinds, shares, strict=False), 1):
        if kind.share.dim != share.dim:
            dims = " and ".join(str(it.dim) for it in shares)
            raise DraftrecError(
                f"{kind.name} has vectors of {kind.share.dim} numbers where {sids} was made of "
                f"{share.dim} (file {place} of {len(shares)}); give the same kinds of vectors, of "
                f"{dims} numbers, in that order"
            )


def _warn_of_noise(kinds: Seq[Kind]) -> None:
    """Say where vectors differ in little but their rounding."""
    from draftrec.items.quantise import rounding_share

    for kind in kinds:
        noise = rounding_share(kind.vectors)
        if noise > _MOST_NOISE:
            _LOG.warning(
                "the vectors%s are so nearly constant that %.2g of their variance may be the "
                "rounding of float32: ids made of it mean little",
                f" of {kind.name}" if len(kinds) > 1 else "",
                min(1.0, noise),
            )


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
