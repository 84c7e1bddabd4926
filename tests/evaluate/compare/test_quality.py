"""Measures of texts against numbers counted by hand."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.core import IntArray
from draftrec.evaluate.compare.quality import (
    Ratio,
    bleu_sample,
    likeness,
    mean_where,
    ngrams,
    own_measures,
    run_distinct,
    self_bleu,
)
from draftrec.evaluate.compare.runs import RunTexts, endings


def arrays(texts: Seq[Seq[int]]) -> list[IntArray]:
    return [np.array(t, np.int32) for t in texts]


def run(token_ids: Seq[Seq[int]], ended: Seq[bool] | None = None, **more: object) -> RunTexts:
    n = len(token_ids)
    return RunTexts(
        "run", tuple(f"u{i}" for i in range(n)), ("",) * n, tuple(arrays(token_ids)),
        np.array(ended if ended is not None else [False] * n, np.bool_), **more,  # type: ignore[arg-type]
    )  # fmt: skip


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6),
    st.integers(1, 4),
)
def test_ngrams_are_counted_as_by_hand(texts: list[list[int]], n: int) -> None:
    by_hand = [[tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in texts]
    found = ngrams(arrays(texts), n)
    different, all_ = found.counts()
    assert all_.tolist() == [len(grams) for grams in by_hand]
    assert different.tolist() == [len(set(grams)) for grams in by_hand]
    flat = [g for grams in by_hand for g in grams]
    assert found.distinct == (len(set(flat)) / len(flat) if flat else None)


def test_variety_and_repetition_leave_the_end_token_out() -> None:
    loop = [5, 6, 7, 8, 5, 6, 7, 8, 0]  # five 4-grams, one of them twice
    found = own_measures(run([loop, [1, 2, 3, 0]], [True, True]))
    assert found["new_tokens"].value == 6.5
    assert found["repetition"].value == 1 / 5
    assert found["text_distinct_1"].value == (4 / 8 + 1) / 2
    assert run_distinct(run([loop, [1, 2, 3, 0]], [True, True]))["distinct_1"] == 7 / 11


def test_short_texts_do_not_count_where_they_have_no_ngrams() -> None:
    found = own_measures(run([[1], [2, 2, 2]]))
    assert found["text_distinct_2"].value == 1 / 2
    assert own_measures(run([[1]]))["repetition"].value is None
    assert run_distinct(run([[1]])) == {"distinct_1": 1.0, "distinct_2": None, "distinct_3": None}


def test_texts_of_two_entities_are_copies_whether_or_not_they_ended() -> None:
    found = own_measures(run([[1, 2, 0], [3, 0], [1, 2]], [True, True, False]))
    assert found["copied_texts"].numerators.tolist() == [1, 0, 1]


def test_a_stop_strings_tokens_are_the_texts_own() -> None:
    """What ends a text with a stop string is no end-of-text token."""
    texts = run([[1, 2, 0], [1, 2, 7]], [True, True], stopped=np.array([False, True]))
    assert [ids.tolist() for ids in texts.bodies] == [[1, 2], [1, 2, 7]]
    assert [ids.tolist() for ids in texts.take([1]).bodies] == [[1, 2, 7]]
    found = own_measures(texts)
    assert (found["eos_rate"].value, found["copied_texts"].value) == (1.0, 0.0)
    ended, stopped = endings(["eos", "stop", "length", None])
    assert ended.tolist() == [True, True, False, False]
    assert stopped.tolist() == [False, True, False, False]


def test_eos_rate_and_relaxed_share() -> None:
    found = own_measures(
        run([[1, 2, 0], [1, 2, 3, 4, 5]], [True, False], relaxed_tokens=np.array([1, 3]))
    )
    assert found["eos_rate"].value == 0.5
    assert found["relaxed_share"].value == 4 / 8
    assert "relaxed_share" not in own_measures(run([[1]]))


def test_likeness_counts_tokens_until_the_first_difference() -> None:
    base = run([[1, 2, 3, 0], [1, 2, 3, 0], [4], []])
    other = run([[1, 2, 3, 0], [1, 9, 3, 0], [4, 5], []])
    found = likeness(base, other)
    assert found["exact_match"].numerators.tolist() == [1, 0, 0, 1]
    assert found["common_prefix"].numerators.tolist() == [1, 1 / 4, 1 / 2, 1]


def test_means_leave_undefined_texts_out() -> None:
    assert mean_where([4.0, 100.0, 8.0], [True, False, True]).value == 6.0
    assert Ratio(np.zeros(2), np.zeros(2)).value is None


def test_a_sample_never_compares_a_text_with_itself() -> None:
    sample = bleu_sample(9, seed=3, texts=5, references=8)
    assert sample.texts.shape == (5,)
    for text, others in zip(sample.texts, sample.references, strict=True):
        assert sorted({*others.tolist(), int(text)}) == list(range(9))
    again = bleu_sample(9, seed=3, texts=5, references=8)
    assert (again.references == sample.references).all()
    assert bleu_sample(1, seed=0).references.shape == (1, 0)


def test_self_bleu_tells_copies_from_texts_of_their_own() -> None:
    pytest.importorskip("sacrebleu")
    alike = ["the quiet sea tale of an old town"] * 4
    apart = [" ".join(f"w{i}x{j}" for j in range(8)) for i in range(4)]
    sample = bleu_sample(4, seed=0)
    assert self_bleu(alike, sample).value == pytest.approx(1.0)
    low = self_bleu(apart, sample).value
    assert low is not None
    assert low < 0.05
    assert self_bleu(["alone"], bleu_sample(1, seed=0)).value is None


CHINESE = [
    f"这位用户喜欢{genre}电影，尤其是{era}年代的作品，常常给出很高的评分。"
    for genre, era in (("科幻", "九十"), ("爱情", "八十"), ("战争", "七十"), ("喜剧", "六十"))
]


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (CHINESE, "zh"),
        (["ฉันชอบภาพยนตร์ไทยมาก", "ฉันชอบภาพยนตร์จีนมาก", "เขาไม่ชอบดูหนังเลย"], "char"),
        (["この映画はとても楽しい", "この本はとても悲しい", "その歌が好きです"], "char"),
        (["She likes war films.", "She likes love films a lot.", "He reads."], "13a"),
    ],
)
def test_self_bleu_is_what_sacrebleu_says_of_these_scripts(
    texts: list[str], tokenizer: str
) -> None:
    from sacrebleu import sentence_bleu

    by_hand = [
        sentence_bleu(t, [o for o in texts if o != t], tokenize=tokenizer).score / 100
        for t in texts
    ]
    found = self_bleu(texts, bleu_sample(len(texts), seed=0))
    assert found.numerators.tolist() == pytest.approx(by_hand)
    if tokenizer != "13a":
        words = self_bleu(texts, bleu_sample(len(texts), seed=0), "13a").value
        assert found.value is not None
        assert words is not None
        assert found.value > words + 0.1
