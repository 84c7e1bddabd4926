"""Which settings are tried."""

from __future__ import annotations

import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.tune.choice import KNOBS, Space, accept_of, label_of
from draftrec.jobs.trials import trial_key


def test_the_grid_is_every_combination_once() -> None:
    space = Space(("relaxed", "typical"), (8, 16))
    grid = space.grid()
    assert len({trial_key(s) for s in grid}) == len(grid) == 2 * (2 * 3 * 2 + 2 * 3)
    assert {s["rule"] for s in grid} == {"relaxed", "typical"}
    assert space.strict() == [{"rule": "strict", "budget": 8}, {"rule": "strict", "budget": 16}]


def test_every_setting_is_a_rule_that_generate_knows() -> None:
    for settings in Space().grid():
        config = accept_of(settings)
        assert config.accept == settings["rule"]
        for name in KNOBS[config.accept]:
            assert getattr(config, name) == settings[name]


def test_drawn_settings_are_of_the_grid() -> None:
    space = Space()
    keys = {trial_key(s) for s in space.grid()}
    drawn = [
        trial_key(space.draw(lambda _, values, i=i: values[i % len(values)])) for i in range(6)
    ]
    assert set(drawn) <= keys
    assert len(set(drawn)) > 3


def test_labels_name_what_is_set() -> None:
    settings = {"rule": "relaxed", "budget": 8, "top_k": 2, "min_prob": 0.1, "max_deviations": None}
    assert label_of(settings) == "relaxed, budget 8, top-k 2, min-prob 0.1"


@pytest.mark.parametrize(
    ("rules", "budgets", "words"),
    [
        (("medusa",), (8,), "known are relaxed, typical, entropy"),
        (("strict",), (8,), "strict is always tried"),
        (("relaxed",), (), "--budgets"),
        (("relaxed",), (0,), "--budgets"),
        (("relaxed",), (8, 8), "--budgets"),
    ],
)
def test_bad_spaces_are_named(rules: tuple[str, ...], budgets: tuple[int, ...], words: str) -> None:
    with pytest.raises(DraftrecError, match=words):
        Space(rules, budgets)
