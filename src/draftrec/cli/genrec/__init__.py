"""`draftrec genrec`: recommend items by beam search over semantic ids, and train models for it."""

from __future__ import annotations

from draftrec.cli.demo import genrec_demo
from draftrec.cli.genrec.recommend import evaluate, recommend
from draftrec.cli.genrec.train import align, fit, teach
from draftrec.cli.genrec.tune import tune

SUBCOMMANDS = {
    "demo": genrec_demo,
    "fit": fit,
    "teach": teach,
    "align": align,
    "tune": tune,
    "recommend": recommend,
    "evaluate": evaluate,
}
