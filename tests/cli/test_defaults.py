"""A default stands once: where the settings are, and not in the options that set them."""

from __future__ import annotations

import ast
import dataclasses
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import draftrec.cli
from draftrec import config
from draftrec.ctr.settings import FitSettings
from draftrec.evaluate.tune.choice import Limits
from draftrec.train.settings import ObjectiveSettings, TeachSettings, TrainSettings

_GENERATE = [
    config.ModelConfig, config.AcceptConfig, config.ControlsConfig, config.DraftConfig,
    config.BatchConfig, config.StructureConfig, config.RecordsConfig, config.JobConfig,
]  # fmt: skip
#: Options, and the settings that they become.
SETTINGS: dict[str, list[Any]] = {
    "knowledge.generate_options.GenerateOptions": _GENERATE,
    "knowledge.encode.EncodeOptions": [config.EncoderConfig, config.EncodeConfig],
    "genrec.recommend.RecommendOptions": [config.RecommendConfig],
    "genrec.train.TrainOptions": [TrainSettings],
    "genrec.train.FitOptions": [TrainSettings],
    "genrec.train.TeachOptions": [TeachSettings],
    "genrec.train.AlignOptions": [ObjectiveSettings],
    "knowledge.ctr.CtrOptions": [FitSettings],
    "knowledge.tune.TuneOptions": [
        Limits,
        config.ModelConfig,
        config.BatchConfig,
        config.RecordsConfig,
    ],
}


def defaults_of(kind: Any) -> dict[str, Any]:
    if issubclass(kind, BaseModel):
        return {name: field.default for name, field in kind.model_fields.items()}
    return {field.name: field.default for field in dataclasses.fields(kind)}


def written(path: Path, name: str) -> dict[str, ast.expr]:
    """The defaults of an option class, as its source has them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    [found] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name]
    return {
        line.target.id: line.value
        for line in found.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value
    }


@pytest.mark.parametrize("where", SETTINGS)
def test_options_take_their_defaults_from_the_settings(where: str) -> None:
    module, _, name = where.rpartition(".")
    source = written(Path(draftrec.cli.__path__[0]) / f"{module.replace('.', '/')}.py", name)
    options = defaults_of(getattr(import_module(f"draftrec.cli.{module}"), name))
    settings = {k: v for kind in SETTINGS[where] for k, v in defaults_of(kind).items()}
    shared = source.keys() & settings.keys()
    assert shared
    for option in shared:
        # None leaves the choice to the settings, and a switch has to be off or on.
        again = isinstance(source[option], ast.Constant) and source[option].value not in (
            None, True, False
        )  # fmt: skip
        assert not again or options[option] != settings[option], f"--{option} has its default twice"
