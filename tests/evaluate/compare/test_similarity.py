"""Similarity: one for the same text, nothing for a stranger's, whatever the encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from draftrec.errors import DraftrecError
from draftrec.evaluate.compare.quality import by_tf_idf, by_vectors, read_text_vectors
from tests.evaluate.run_folders import changed, varied_texts


def test_kept_is_one_for_the_same_vectors_and_zero_for_anothers() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 16)) + 3  # a shared direction, as encoders have
    same = by_vectors(vectors, vectors)
    assert same.kept.value == pytest.approx(1.0)
    assert same.strangers.mean() > 0.8
    strangers = by_vectors(vectors, np.roll(vectors, 1, axis=0))
    assert strangers.kept.value == pytest.approx(0.0, abs=0.1)


def test_a_change_that_all_texts_share_is_not_a_loss_of_the_entity() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    style = np.zeros((400, 64))
    style[:, 0] = 1.0
    found = by_vectors(vectors + style, vectors - style)
    assert found.cosines.mean() == pytest.approx(0.0, abs=0.05)
    assert found.kept.value == pytest.approx(1 / 3, abs=0.05)  # (0 + 1/2) / (1 + 1/2)


def test_strangers_are_all_others() -> None:
    a = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    b = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = by_vectors(a, b)
    assert found.cosines.tolist() == [1, 0, 0]
    assert found.strangers == pytest.approx([1 / 2, 1, 1 / 2])
    alone = by_vectors(a[:1], b[:1])
    assert alone.kept.value == 1.0


def test_vectors_without_a_direction_are_like_nothing() -> None:
    found = by_vectors(np.array([[1.0, 0.0], [0.0, 1.0]]), np.zeros((2, 2)))
    assert found.cosines.tolist() == [0.0, 0.0]


def test_nothing_is_kept_or_lost_where_all_texts_are_alike() -> None:
    assert by_vectors(np.ones((3, 2)), np.ones((3, 2))).kept.value is None
    assert by_tf_idf(["a b", "a b"], ["a b", "a b"]).kept.value is None


def test_tf_idf_falls_with_the_share_of_changed_words() -> None:
    texts = varied_texts(40)
    means = [
        by_tf_idf(list(texts.values()), list(changed(texts, share).values())).cosines.mean()
        for share in (0.0, 0.3, 1.0)
    ]
    assert means[0] == 1.0
    assert means[0] > means[1] > means[2]


def test_tf_idf_of_texts_without_words() -> None:
    assert by_tf_idf(["", "!"], ["", "?"]).cosines.tolist() == [1.0, 0.0]


def test_equal_texts_without_words_are_as_far_from_strangers_as_any() -> None:
    found = by_tf_idf(["", "a b", "c d"], ["", "a b", "c d"])
    assert found.cosines.tolist() == [1.0, 1.0, 1.0]
    assert found.strangers == pytest.approx([0.0, 0.0, 0.0])


def write(path: Path, ids: list[str], vectors: object) -> Path:
    pq.write_table(pa.table({"entity_id": ids, "vector": vectors}), path)
    return path


def test_vectors_come_in_the_order_of_the_entities(tmp_path: Path) -> None:
    kind = pa.list_(pa.float32(), 2)
    path = write(tmp_path / "v.parquet", ["b", "a"], pa.array([[1, 2], [3, 4]], kind))
    assert read_text_vectors(path, ["a", "b"]).tolist() == [[3, 4], [1, 2]]


@pytest.mark.parametrize(
    ("ids", "vectors", "words"),
    [
        (["a"], [[1.0]], "lacks the vectors of 1 entities"),
        (["a", "b"], [[1.0], [1.0, 2.0]], "equally many"),
    ],
)
def test_unusable_vectors_are_refused(
    tmp_path: Path, ids: list[str], vectors: list[object], words: str
) -> None:
    path = write(tmp_path / "v.parquet", ids, vectors)
    with pytest.raises(DraftrecError, match=words):
        read_text_vectors(path, ["a", "b"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("这位用户喜欢科幻电影和战争电影", "这位用户喜欢科幻电影和战争电视"),
        ("ฉันชอบภาพยนตร์ไทยและภาพยนตร์จีน", "ฉันชอบภาพยนตร์ไทยและภาพยนตร์ลาว"),
        ("この映画はとても楽しいです", "この映画はとても楽しいよ"),
    ],
)
def test_texts_that_differ_in_their_end_are_alike_in_every_script(one: str, other: str) -> None:
    found = by_tf_idf([one, "123 abc"], [other, "123 abc"]).cosines
    assert 0.6 < found[0] < 1
