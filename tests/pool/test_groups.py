"""Grouping: planted tastes are found, strangers are assigned, everything repeats."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from draftrec.data.settings import GroupSettings, Method
from draftrec.errors import DraftrecError
from draftrec.pool.groups import (
    TasteGroups,
    attribute_groups,
    random_groups,
    routed,
)

TASTES = 4
needs_implicit = pytest.mark.skipif(not find_spec("implicit"), reason="implicit is not installed")
EVERY = [m if m == "svd" else pytest.param(m, marks=needs_implicit) for m in get_args(Method)]


def planted(users: int, seed: int, first: int = 0) -> tuple[dict[str, list[str]], list[int]]:
    """Users who mostly choose among the 30 items of their own taste."""
    random = np.random.default_rng(seed)
    histories: dict[str, list[str]] = {}
    tastes: list[int] = []
    for u in range(first, first + users):
        taste = u % TASTES
        own = random.integers(taste * 30, taste * 30 + 30, 12)
        other = random.integers(0, TASTES * 30, 3)
        histories[f"u{u}"] = [f"i{i}" for i in {*own.tolist(), *other.tolist()}]
        tastes.append(taste)
    return histories, tastes


@pytest.mark.parametrize("method", EVERY)
def test_planted_tastes_are_found_and_strangers_join_them(method: Method) -> None:
    histories, tastes = planted(200, 0)
    model = TasteGroups.fit(histories, GroupSettings(TASTES, 8, method=method, seed=1))
    groups = model.assign(histories)
    assert adjusted_rand_score(tastes, list(groups.values())) > 0.95
    # What a taste's group is called is seen from the known users; strangers must agree.
    name = {t: Counter(g for g, x in zip(groups.values(), tastes, strict=True) if x == t) for t in
            range(TASTES)}  # fmt: skip
    strangers, wanted = planted(80, 7, first=1000)
    found = model.assign(strangers)
    right = sum(
        found[e] == name[t].most_common(1)[0][0] for e, t in zip(found, wanted, strict=True)
    )
    assert right >= 76


@pytest.mark.parametrize("method", EVERY)
def test_the_same_seed_gives_the_same_groups(method: Method) -> None:
    histories, _ = planted(60, 0)
    settings = GroupSettings(TASTES, 8, method=method, seed=3)
    a, b = (TasteGroups.fit(histories, settings) for _ in range(2))
    assert a.item_factors.tobytes() == b.item_factors.tobytes()
    assert a.centroids.tobytes() == b.centroids.tobytes()


def test_too_few_interactions_give_no_taste() -> None:
    histories, _ = planted(40, 0)
    model = TasteGroups.fit(histories, GroupSettings(2, 4, least=5))
    few = {"a": ["i1"] * 4, "b": [f"i{i}" for i in range(5)], "c": ["unknown"] * 9}
    found = model.assign(few)
    assert (found["a"], found["c"]) == (None, None)
    assert found["b"] is not None
    assert routed(found, {"a": "x", "b": "y", "d": "z"}) == {
        "a": "x", "b": found["b"], "c": None, "d": "z",
    }  # fmt: skip


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    histories, _ = planted(40, 0)
    model = TasteGroups.fit(histories, GroupSettings(3, 4))
    model.save(tmp_path / "m.npz")
    assert TasteGroups.load(tmp_path / "m.npz").assign(histories) == model.assign(histories)
    for content in (b"", b"no model", (tmp_path / "m.npz").read_bytes()[:-40]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DraftrecError, match="no model"):
            TasteGroups.load(tmp_path / "bad.npz")
    with pytest.raises(DraftrecError, match="no model"):
        TasteGroups.load(tmp_path / "missing.npz")


def test_what_cannot_be_grouped_is_named() -> None:
    histories, _ = planted(10, 0)
    with pytest.raises(DraftrecError, match="only 10 entities"):
        TasteGroups.fit(histories, GroupSettings(11))
    with pytest.raises(DraftrecError, match="one item"):
        TasteGroups.fit({"a": ["i"] * 9, "b": ["i"] * 9}, GroupSettings(1))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.als", None)
    with pytest.raises(DraftrecError, match=r"draftrec\[cf\]"):
        TasteGroups.fit(planted(40, 0)[0], GroupSettings(2, 4, method="als"))


def test_random_groups_depend_on_the_id_alone() -> None:
    many = [f"u{i}" for i in range(4000)]
    found = random_groups(many, 8, 0)
    assert random_groups(many[100:200], 8, 0) == {e: found[e] for e in many[100:200]}
    assert random_groups(many, 8, 1) != found
    sizes = Counter(found.values())
    assert len(sizes) == 8
    assert max(sizes.values()) < 600


def test_attributes_are_mapped() -> None:
    rows = [("a", "Noir"), ("b", "War"), ("c", None), ("d", 7)]
    assert attribute_groups(rows) == {"a": "Noir", "b": "War", "c": None, "d": "7"}
    names = {"Noir": "dark", "7": "seven"}
    assert attribute_groups(rows, names) == {"a": "dark", "b": None, "c": None, "d": "seven"}
    assert attribute_groups(rows, {**names, "*": "rest"})["b"] == "rest"
