"""What the proposer cannot work with is refused in one sentence, before an engine starts if it can
be told by then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.errors import DraftrecError, PoolMismatchError
from draftrec.integrations.vllm import PoolProposer, engine_args, write_groups
from draftrec.pool.store import Pool
from tests.integrations.vllm.vllm_engine import config
from tests.models import folders


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """A pool of no tokenizer in particular."""
    made = Pool("another")
    made.add([(np.array([3, 4], np.int32), None)])
    made.save(tmp_path / "pool")
    return tmp_path / "pool"


def refused(error: type[DraftrecError], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [0, 129])
def test_too_few_or_too_many_draft_tokens(pool: Path, k: int) -> None:
    message = f"{k} draft tokens.*vLLM verifies 1 to 128"
    refused(DraftrecError, message, lambda: engine_args(pool, k=k))
    settings = config(None, tokens=k, pool=str(pool))
    refused(DraftrecError, message, lambda: PoolProposer(settings))


def test_a_pool_that_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    refused(DraftrecError, "nowhere is not a pool", lambda: engine_args(missing))
    settings = config(None, pool=str(missing))
    refused(DraftrecError, "nowhere is not a pool", lambda: PoolProposer(settings))


def test_nothing_to_draft_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRAFTREC_POOL", raising=False)
    refused(DraftrecError, "nothing to draft from.*DRAFTREC_POOL", engine_args)
    refused(DraftrecError, "nothing to draft from", lambda: PoolProposer(config(None)))


def test_a_pool_of_another_tokenizer(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folders.make_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = config(folder, pool=str(pool))
    refused(PoolMismatchError, "made with another tokenizer", lambda: PoolProposer(settings))


@pytest.mark.parametrize(
    ("name", "value"), [("min_prob", 2.0), ("max_grown_tokens", 0), ("poool", "x")]
)
def test_values_that_are_not_allowed(pool: Path, name: str, value: Any) -> None:
    more = {name: value}
    refused(
        DraftrecError, f"{name}={value!r} is not allowed.*ProposerSettings",
        lambda: engine_args(pool, **more),
    )  # fmt: skip


def test_settings_that_are_no_object() -> None:
    settings = config(None)
    settings.additional_config = {"draftrec": "pool/"}
    refused(DraftrecError, "is a str and must be an object", lambda: PoolProposer(settings))


def test_files_of_groups_that_are_none(pool: Path, tmp_path: Path) -> None:
    missing, other = tmp_path / "groups.parquet", tmp_path / "other.parquet"
    refused(
        DraftrecError, "does not exist.*write_groups", lambda: engine_args(pool, groups=missing)
    )
    other.write_text("no Parquet")
    settings = config(None, pool=str(pool), groups=str(other))
    refused(DraftrecError, "cannot be read.*write_groups", lambda: PoolProposer(settings))


def test_groups_for_a_pool_without_any(pool: Path, tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    write_groups(path, [([5, 6], "books")])
    settings = config(None, pool=str(pool), groups=str(path))
    refused(DraftrecError, "built without groups", lambda: PoolProposer(settings))


def test_prefixes_that_say_nothing_or_two_things(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    refused(DraftrecError, "'a' is empty", lambda: write_groups(path, [([], "a")]))
    both = [([5, 6], "a"), ([5, 6], "b")]
    refused(DraftrecError, "the groups 'a' and 'b'", lambda: write_groups(path, both))
    assert not path.exists()
