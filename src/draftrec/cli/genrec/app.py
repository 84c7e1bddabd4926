"""`draftrec genrec`: recommend items by beam search over semantic ids, and train models for it."""

from __future__ import annotations

from draftrec.cli.genrec.demo import demo
from draftrec.cli.genrec.evaluate import evaluate
from draftrec.cli.genrec.recommend import recommend
from draftrec.cli.genrec.train import align, fit, teach

SUBCOMMANDS = {
    "demo": demo,
    "fit": fit,
    "teach": teach,
    "align": align,
    "recommend": recommend,
    "evaluate": evaluate,
}
