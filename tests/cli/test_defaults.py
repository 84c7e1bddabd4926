"""What a knob is by default, how far it goes, what it may be and what it does stand once: in the
settings, and not in the options that set them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, Field, ValidationError

import draftrec
from draftrec import config
from draftrec.cli.knobs import hints_of, option_of, settings_of
from draftrec.cli.knowledge.ctr import CtrOptions
from draftrec.cli.options import Options
from draftrec.config import Auto
from draftrec.ctr import settings as ctr
from draftrec.data import settings as data
from draftrec.errors import DraftrecError
from draftrec.evaluate import settings as evaluate
from draftrec.evaluate.tune.choice import LossLimits, Space
from draftrec.items import settings as items
from draftrec.knobs import Knob, check_knobs, knob, knobs
from draftrec.serve import settings as serve
from draftrec.train import settings as train

SOURCE = Path(draftrec.__path__[0])
_GENERATE = {
    config.ModelConfig, config.AcceptConfig, config.ControlsConfig, config.DraftConfig,
    config.BatchConfig, config.StructureConfig, config.RecordsConfig, config.JobConfig,
}  # fmt: skip
#: Options, and the settings that they become; those of other commands become none.
SETTINGS: dict[str, set[type[Any]]] = {
    "generate GenerateOptions": _GENERATE,
    "generate PromptsOptions": {config.RecordsConfig, config.ModelConfig},
    "encode EncodeOptions": {config.EncoderConfig, config.EncodeConfig},
    "recommend RecommendOptions": {
        config.RecommendConfig, config.RecommendRun, config.RetrieverSettings,
    },
    "train FitOptions": {train.TrainSettings, train.FitRun, items.PromptFormat},
    "train TeachOptions": {train.TeachSettings, train.TeachRun},
    "drafter DrafterFitOptions": {train.TrainSettings, train.HeadSettings, train.HeadRun},
    "train AlignOptions": {train.TrainSettings, train.ObjectiveSettings, train.AlignRun},
    "ctr CtrOptions": {ctr.FitSettings, ctr.StudyRun, data.CutSettings},
    "tune TuneOptions": {
        LossLimits, Space, evaluate.TuneRun, evaluate.QualityRun, config.ModelConfig,
        config.BatchConfig, config.RecordsConfig,
    },
    "replay ReplayOptions": {evaluate.ReplaySettings},
    "compare CompareOptions": {evaluate.CompareRun},
    "tune GenrecTuneOptions": {config.RecommendConfig, config.RecommendRun, evaluate.BlendRun},
    "recommend EvaluateOptions": {evaluate.RankingRun},
    "interactions SequencesOptions": {data.SplitSettings},
    "interactions RecordsOptions": {data.ProfileSettings, data.SplitSettings},
    "group AttributeOptions": {config.RecordsConfig},
    "group CollaborativeOptions": {data.GroupSettings},
    "group RandomOptions": {data.GroupSettings, config.RecordsConfig},
    "sid FitOptions": {items.QuantiseSettings, items.RqVaeSettings, config.EncoderConfig},
    "sid VectorsOptions": {items.FactorSettings},
    "serve DashboardOptions": {config.ListenConfig},
    "serve ServeOptions": {config.ListenConfig},
}  # fmt: skip
#: Options that are no setting though one of these classes has a field of their name: a file where
#: that holds what is in it, a model's folder, a choice of another kind.
_OTHERS = {
    "generate GenerateOptions": {"bad_words", "json_schema", "grammar"},
    "generate PromptsOptions": {"model"},
    "tune TuneOptions": {"model", "template"},
}


@cache
def option_classes() -> dict[str, type[Any]]:
    """Module and class -> the options of every command, and what they inherit from."""
    found: dict[str, type[Any]] = {}
    for place in pkgutil.walk_packages([str(SOURCE / "cli")], "draftrec.cli."):
        module = import_module(place.name)
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, Options):
                found[f"{kind.__module__.rpartition('.')[2]} {kind.__name__}"] = kind
    return found


def infos(kind: type[Any]) -> dict[str, Any]:
    """What Typer is told of each option."""
    return {
        name: next(it for it in get_args(hint)[1:] if hasattr(it, "help"))
        for name, hint in hints_of(kind).items()
    }


def test_every_class_of_options_with_settings_is_known() -> None:
    assert set(option_classes()) >= set(SETTINGS)
    made = {name for name, kind in option_classes().items() if any(_settings(kind).values())}
    assert made <= set(SETTINGS) | {"train TrainOptions"}


def _settings(kind: type[Any]) -> dict[str, tuple[type[Any], str] | None]:
    """Option -> the settings class and the field that it was made of."""
    return {it.name: it.metadata.get("made_of") for it in dataclasses.fields(kind)}


@pytest.mark.parametrize("where", SETTINGS)
def test_options_are_made_of_settings(where: str) -> None:
    made, used = _settings(option_classes()[where]), SETTINGS[where]
    names = {name for kind in used for name in knobs(kind)}
    own = {name for name, of in made.items() if of is None}
    assert not (own & names) - _OTHERS.get(where, set())
    assert {of[0] for of in made.values() if of} == used


@pytest.mark.slow
@pytest.mark.parametrize("where", SETTINGS)
def test_an_option_is_as_its_setting_is(where: str) -> None:
    """Default, bounds, choices and words; where a command has another default, that differs."""
    kind = option_classes()[where]
    told, hints = infos(kind), hints_of(kind)
    defaults = {it.name: it.default for it in dataclasses.fields(kind)}
    for name, of in _settings(kind).items():
        if of is None:
            continue
        known, info = knobs(of[0])[of[1]], told[name]
        assert info.help.lower().endswith(known.does.lower())
        assert known.does, f"{of} has no words"
        assert info.min in (None, known.bounds.get("ge"))
        assert info.max in (None, known.bounds.get("le"))
        if get_origin(known.kind) is Literal:
            assert get_args(hints[name])[0] == known.kind
        again = [n for n in _written(kind, name) if n.arg == "default"]
        for word in again:
            literal = isinstance(word.value, ast.Constant) and word.value.value is not None
            assert not literal or defaults[name] != known.default, f"--{name} has it twice"
        assert not [n.arg for n in _written(kind, name) if n.arg in ("min", "max", "help")]


def _written(kind: type[Any], name: str) -> list[ast.keyword]:
    """The keywords of the call that makes an option, as its source has them."""
    for owner in kind.__mro__:
        path = SOURCE.parent / f"{owner.__module__.replace('.', '/')}.py"
        if name not in inspect.get_annotations(owner) or not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name == owner.__name__:
                lines = (it for it in node.body if isinstance(it, ast.AnnAssign))
                calls = [it.value for it in lines if ast.unparse(it.target) == name]
                return [word for it in calls if isinstance(it, ast.Call) for word in it.keywords]
    return []


def _words() -> Iterator[str]:
    """Every text in the source that is as long as a help: calls alone, no docstrings."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call | ast.Assign):
                parts = [*node.args, *(it.value for it in node.keywords)] if isinstance(
                    node, ast.Call
                ) else [node.value]  # fmt: skip
                for part in parts:
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


@pytest.mark.slow
def test_a_help_text_stands_once() -> None:
    written = Counter(_words())
    helps = {info.help for kind in option_classes().values() for info in infos(kind).values()}
    assert len(helps) > 200
    assert {text: written[text] for text in helps if written[text] > 1} == {}
    # What a command puts in front of a setting's words is the only text that is not written.
    composed = {text for text in helps if not written[text]}
    assert all(text.startswith(("With --model: ", "rq-vae: ")) for text in composed)


def test_no_choices_are_listed_twice() -> None:
    """Choices are types of the settings; no enumeration repeats them, nor does a second Literal."""
    settings = [config, items, train, ctr, data, evaluate, serve]
    known = {
        frozenset(get_args(it.kind))
        for module in settings
        for kind in vars(module).values()
        if isinstance(kind, type)
        and (dataclasses.is_dataclass(kind) or issubclass(kind, BaseModel))
        and kind not in (BaseModel, Knob)
        for it in knobs(kind).values()
        if get_origin(it.kind) is Literal
    }
    assert frozenset(("strict", "relaxed", "typical", "entropy")) in known
    for path in (SOURCE / "cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert "StrEnum" not in " ".join(map(ast.unparse, node.bases)), (
                    f"{path}: {node.name}"
                )
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                choices = ast.literal_eval(node.slice)
                assert frozenset(choices if isinstance(choices, tuple) else [choices]) not in known


class TestKnobs:
    class Model(BaseModel):
        budget: Annotated[
            Annotated[int, Field(ge=0, le=9)] | Auto, knob("How many.", unset="many")
        ] = "auto"
        name: Annotated[str, knob("Whose.")]

    @dataclasses.dataclass(frozen=True)
    class Plain:
        share: Annotated[float | None, knob("How much.", ge=0, lt=1)] = 0.5
        kind: Annotated[Literal["a", "b"], knob("Which.")] = "a"

    def test_of_a_model_and_of_a_dataclass(self) -> None:
        found = knobs(self.Model)
        assert found["budget"].bounds == {"ge": 0, "le": 9}
        assert (found["budget"].default, found["budget"].unset) == ("auto", "many")
        assert found["name"].default is dataclasses.MISSING
        plain = knobs(self.Plain)
        assert (plain["share"].bounds, plain["share"].default) == ({"ge": 0, "lt": 1}, 0.5)
        assert plain["kind"].does == "Which."

    def test_bounds_hold(self) -> None:
        with pytest.raises(ValidationError):
            self.Model(budget=10, name="x")
        check_knobs(self.Plain(share=None))
        with pytest.raises(DraftrecError, match="--epochs must be at least 1, not 0"):
            train.TrainSettings(epochs=0)
        for values, words in (
            ({"share": 1.0}, "--share must be at least 0 and below 1, not 1.0"),
            ({"share": float("nan")}, "--share must be a finite number, not nan"),
            ({"kind": "c"}, "--kind must be one of a, b, not 'c'"),
        ):
            with pytest.raises(DraftrecError, match=words):
                check_knobs(self.Plain(**values))

    def test_settings_are_made_of_options_again(self) -> None:
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Given:
            share: float | None = option_of(self.Plain, "share")
            sort: str = option_of(self.Plain, "kind")
            budget: int | str = option_of(self.Model, "budget")
            name: str = "no setting's"

        given = Given(share=None, sort="b", budget=3)
        assert settings_of(self.Plain, given) == self.Plain(share=0.5, kind="b")
        assert settings_of(self.Model, given, name="x") == self.Model(budget=3, name="x")
        with pytest.raises(DraftrecError, match=r"--budget .* not 10"):
            settings_of(self.Model, Given(budget=10), name="x")
        options = CtrOptions(interactions="", lr=[0.1, 0.2], embedding=8)
        assert settings_of(ctr.FitSettings, options) == ctr.FitSettings((0.1, 0.2), size=8)
