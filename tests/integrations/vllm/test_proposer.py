"""The proposer that vLLM asks after each step: what it drafts, and that it keeps requests apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftrec.core import EMPTY_TREE, DraftTree
from draftrec.integrations.vllm import PoolProposer, engine_args, write_groups
from draftrec.integrations.vllm.setup import best_chain
from draftrec.models import loading
from draftrec.pool.store import Pool
from tests.integrations.vllm.vllm_engine import EOS, Engine, Job, config
from tests.models import folders

BOOKS = [10, 11, 12, 13, 14, 15, 16, 17, EOS]
FILMS = [10, 11, 12, 53, 54, 55, 56, 57, EOS]
EXAMPLE = Path(__file__).parents[3] / "examples" / "vllm_generate.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as far as proposers look: a tokenizer beside a configuration."""
    folder = tmp_path_factory.mktemp("model")
    folders.make_tokenizer(eos=EOS).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def save(model: Path, tmp_path: Path) -> Callable[..., str]:
    """Saves a pool that has each (text, group) eight times, and names its folder."""

    def saved(*texts: tuple[list[int], str | None]) -> str:
        pool = Pool(loading.tokenizer_fingerprint(loading.load_tokenizer(model)))
        pool.add((np.array(text, np.int32), group) for text, group in texts * 8)
        pool.save(tmp_path / "pool")
        return str(tmp_path / "pool")

    return saved


def first_draft(proposer: PoolProposer, prompt: list[int], text: list[int]) -> list[int]:
    """What is drafted after the first token of `text`."""
    job = Job(prompt, text)
    Engine(proposer).step([job])
    return job.draft


def test_a_chain_follows_the_pool_and_ends_with_eos(model: Path, save: Any) -> None:
    proposer = PoolProposer(config(model, tokens=16, pool=save((BOOKS, None))))
    assert first_draft(proposer, [5, 6], BOOKS) == BOOKS[1:]


def test_the_chain_is_the_one_with_most_expected_tokens() -> None:
    """Of a tree: 7 alone is likelier than 8 alone, but 8 has a sure continuation."""
    tree = DraftTree(
        np.array([7, 8, 9, EOS, 3], np.int32),
        np.array([-1, -1, 1, 2, 3], np.int32),
        np.array([0.5, 0.4, 0.4, 0.3, 0.2], np.float32),
        np.zeros(5, np.uint8),
    )
    assert best_chain(tree, frozenset([EOS])) == [8, 9, EOS], "nothing is drafted behind an EOS"
    assert best_chain(EMPTY_TREE, frozenset([EOS])) == []


def test_at_most_k_tokens_are_drafted(model: Path, save: Any) -> None:
    proposer = PoolProposer(config(model, tokens=3, pool=save((BOOKS, None))))
    assert first_draft(proposer, [5, 6], BOOKS) == BOOKS[1:4]


@pytest.mark.parametrize(("context", "drafted"), [(64, 8), (8, 4), (5, 1), (4, 0)])
def test_drafts_leave_room_for_the_token_behind_them(
    model: Path, save: Any, context: int, drafted: int
) -> None:
    """Prompt and first token are 3; the pass that verifies writes one token more than it keeps."""
    proposer = PoolProposer(config(model, tokens=16, most=context, pool=save((BOOKS, None))))
    assert first_draft(proposer, [5, 6], BOOKS) == BOOKS[1 : 1 + drafted]


def test_the_prompt_is_drafted_from_as_well(model: Path) -> None:
    proposer = PoolProposer(config(model, tokens=2, grow=True))
    assert first_draft(proposer, [20, 21, 22, 23, 9, 20, 21], [22, 23, 9]) == [23, 9]


def test_improbable_tokens_are_not_drafted(model: Path, save: Any) -> None:
    pool = save(*[([10, 11, 30 + i, 50 + i, EOS], None) for i in range(12)])
    proposer = PoolProposer(config(model, tokens=8, pool=pool, min_prob=0.5))
    assert first_draft(proposer, [5], [10, 11]) == [11]
    proposer = PoolProposer(config(model, tokens=8, pool=pool, min_prob=0.01))
    assert len(first_draft(proposer, [5], [10, 11])) >= 3


def test_texts_stay_what_they_are_and_take_fewer_passes(model: Path, save: Any) -> None:
    proposer = PoolProposer(config(model, tokens=16, pool=save((BOOKS, None))))
    known, unknown = Job([5, 6], BOOKS), Job([5, 7], [30, 31, 32, 33, EOS])
    Engine(proposer).run(known, unknown)
    assert (known.passes, unknown.passes) == (2, 5)


def test_rows_that_are_swapped_taken_over_and_set_aside(model: Path, save: Any) -> None:
    """Each request drafts from its own prompt and group, wherever it stands."""
    proposer = PoolProposer(config(model, tokens=2, grow=True))
    engine = Engine(proposer)
    first, second = (
        Job([20, 21, 22, 23, 24, 25, 9], [20, 21, 22, 23, 24, 25]),
        Job([20, 31, 32, 33, 34, 35, 9], [20, 31, 32, 33, 34, 35]),
    )
    engine.step([first, second])
    assert (first.draft, second.draft) == ([21, 22], [31, 32])
    engine.step([second, first])  # swapped
    assert (first.draft, second.draft) == ([24, 25], [34, 35])
    known = proposer._rows._by_row
    assert [len(known[row].text) for row in (0, 1)] == [4, 4]

    third = Job([20, 41, 42, 43, 9], [20, 41, 42, 43])
    engine.step([third])  # takes a row over; the others are set aside
    assert third.draft == [41, 42]
    assert proposer._rows._by_row[0].prompt_tokens == 5
    engine.step([third, first])
    assert proposer._rows._by_row[1] is known[1], "what was set aside comes back as it was"


def test_a_prompt_that_is_still_being_read_is_left_alone(model: Path, save: Any) -> None:
    engine = Engine(PoolProposer(config(model, tokens=16, pool=save((BOOKS, None)))))
    read, other = Job([5, 6], BOOKS), Job([5, 7], BOOKS)
    engine.step([read, other], reading=(0,))
    assert (read.draft, other.draft) == ([], BOOKS[1:])
    engine.step([read, other])
    assert read.draft == BOOKS[1:]


def test_tokens_behind_an_eos_belong_to_no_text(model: Path) -> None:
    """vLLM accepts drafts behind an EOS and cuts the text afterwards."""
    proposer = PoolProposer(config(model, tokens=4, grow=True))
    engine = Engine(proposer)
    engine.step([Job([5, 6], [10, 11, 12]), Job([5, 7], [10, 11, 12])])
    job = Job([5, 8], [30, EOS, 99])
    job.draft = [30, EOS]
    engine.step([job])
    assert job.draft == []
    assert [ids.tolist() for ids, _ in proposer._drafter.pools.grown] == [[30, EOS]]


def test_each_group_drafts_from_its_own_texts(model: Path, save: Any, tmp_path: Path) -> None:
    pool = save((BOOKS, "books"), (FILMS, "films"))
    groups = tmp_path / "groups.parquet"
    write_groups(groups, [([5, 6], "books"), ([5], "films"), ([5, 6, 7, 8], "films")])
    proposer = PoolProposer(config(model, tokens=4, pool=pool, groups=str(groups)))
    for prompt, third in (([5, 6], 13), ([5, 6, 7], 13), ([5, 6, 7, 8], 53), ([5, 9], 53)):
        job = Job(prompt, BOOKS)
        job.draft = BOOKS[:2]
        Engine(proposer).step([job])
        assert job.draft[0] == third, prompt
    assert proposer._drafter.group_of(np.array([9, 5, 6], np.int32)) is None


@pytest.mark.parametrize("grow", [True, False])
def test_finished_texts_join_only_a_pool_that_may_grow(
    model: Path, save: Any, *, grow: bool
) -> None:
    proposer = PoolProposer(config(model, tokens=16, pool=save((BOOKS, None)), grow=grow))
    text = [30, 31, 32, 33, 34, EOS]
    passes = []
    for prompt in ([5, 6], [7, 8]):
        job = Job(prompt, text)
        Engine(proposer).run(job)
        passes.append(job.passes)
    assert passes == [6, 2 if grow else 6]


def test_texts_without_eos_join_when_their_request_is_gone(model: Path) -> None:
    proposer = PoolProposer(config(model, tokens=4, grow=True))
    engine = Engine(proposer)
    engine.run(Job([5, 6], [30, 31, 32]))
    for i in range(10):  # 8 texts are remembered for 4 rows
        engine.run(Job([6, 40 + i], [30]))
    assert [30, 31, 32] in [ids.tolist() for ids, _ in proposer._drafter.pools.grown]


def test_a_grown_pool_keeps_its_bounds_and_the_latest_texts(model: Path) -> None:
    proposer = PoolProposer(config(model, tokens=4, grow=True, max_grown_tokens=40))
    engine = Engine(proposer)
    for i in range(30):
        engine.run(Job([5, 6], [30 + i, 31 + i, 32 + i, EOS]))
    grown = proposer._drafter.pools.grown
    assert 20 <= grown.tokens <= 40
    engine.run(Job([5, 6], [*range(20, 50), EOS]))
    assert proposer._drafter.pools.grown.tokens == grown.tokens, "too long for its half"
    assert [59, 60, 61, EOS] in [ids.tolist() for ids, _ in grown]


def test_settings_reach_the_proposer_as_engine_args_give_them(model: Path, save: Any) -> None:
    arguments = engine_args(save((BOOKS, None)), k=7, min_prob=0.2)
    assert arguments["speculative_config"] == {
        "method": "custom_class",
        "model": "draftrec.integrations.vllm.PoolProposer",
        "num_speculative_tokens": 7,
    }
    engine = config(model, tokens=7)
    engine.additional_config = arguments["additional_config"]
    assert first_draft(PoolProposer(engine), [5, 6], BOOKS) == BOOKS[1:8]


def test_the_environment_names_a_pool(
    model: Path, save: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAFTREC_POOL", save((BOOKS, None)))
    assert first_draft(PoolProposer(config(model)), [5, 6], BOOKS) == BOOKS[1:5]


@pytest.mark.slow
def test_importing_it_loads_neither_numba_nor_vllm() -> None:
    """vLLM's thread settings come too late for a numba that was loaded before it."""
    code = (
        "import sys, draftrec.integrations.vllm\n"
        "print([n for n in ('numba', 'vllm', 'torch', 'pyarrow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_itself_writes_the_same_texts_in_fewer_steps() -> None:
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the same texts: True" in done.stdout
    tokens = float(done.stdout.split("tokens per step: ")[1].split()[0])
    assert tokens > 1.5
