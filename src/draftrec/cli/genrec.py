"""`draftrec genrec`: recommend items by beam search over semantic ids, and train models for it."""

from __future__ import annotations

from draftrec.cli.genrec_demo import demo
from draftrec.cli.genrec_evaluate import evaluate
from draftrec.cli.genrec_recommend import recommend
from draftrec.cli.genrec_train import align, fit, teach

SUBCOMMANDS = {
    "demo": demo,
    "fit": fit,
    "teach": teach,
    "align": align,
    "recommend": recommend,
    "evaluate": evaluate,
}
