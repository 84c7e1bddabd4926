"""The encoder without a model: same texts, same numbers; related texts are near."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from draftrec.config import EncoderConfig
from draftrec.errors import DraftrecError
from draftrec.models.encoders import Document, HashedEncoder, hashed_dim, load_encoder
from tests.models.encoder_folders import vectors_of

WARS = [f"star ships fight a war in space {w}" for w in ("again", "alone", "now", "today")]
SOUPS = [f"boil onion soup with cheese {w}" for w in ("slowly", "twice", "gently", "often")]
TEXTS = WARS + SOUPS


def fit(dim: int = 8, texts: list[str] = TEXTS, **settings: object) -> HashedEncoder:
    return HashedEncoder.fit(iter(texts), dim, EncoderConfig.model_validate(settings))


def test_related_texts_are_nearer() -> None:
    found = vectors_of(fit(4), TEXTS)
    assert found.shape == (8, 4)
    assert found.dtype == np.float32
    cosines = found @ found.T
    assert cosines[:4, :4].min() > cosines[:4, 4:].max() + 0.5


def test_equal_texts_give_equal_bytes_and_signs() -> None:
    one, two = fit(), fit()
    assert one.fingerprint == two.fingerprint
    assert vectors_of(one, TEXTS).tobytes() == vectors_of(two, TEXTS).tobytes()
    assert fit(texts=WARS).fingerprint != one.fingerprint
    # The first direction holds what all texts share, and it points their way.
    assert (vectors_of(fit(1, normalise=False), WARS) > 0).all()


@pytest.mark.slow
def test_the_number_of_threads_is_nothing_to_a_fit() -> None:
    texts = [f"w{i * 7919 % 1301} w{i * 31 % 700} w{i % 97} a{i}" for i in range(2000)]
    found: set[str] = set()
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.add(fit(64, texts).fingerprint)
    assert len(found) == 1


def test_vectors_depend_on_the_fit_alone() -> None:
    encoder = fit()
    np.testing.assert_allclose(
        vectors_of(encoder, TEXTS)[5], vectors_of(encoder, SOUPS)[1], atol=1e-6
    )
    new = vectors_of(encoder, ["star ships"])
    assert new @ vectors_of(encoder, WARS[:1]).T > new @ vectors_of(encoder, SOUPS[:1]).T


def test_few_texts_leave_numbers_at_zero() -> None:
    found = vectors_of(fit(64, [*WARS, *WARS]), TEXTS)
    assert found.shape == (8, 64)
    assert not found[:, 4:].any()
    assert found[:, :4].any(axis=0).all()


def test_tokens_are_counted_and_history_joins() -> None:
    encoder = fit()
    found = encoder.encode_documents([Document("onion soup", "star ships"), Document("?!")])
    assert found.tokens.tolist() == [4, 0]
    assert found.windows.tolist() == [1, 0]
    np.testing.assert_array_equal(
        found.vectors[0], vectors_of(encoder, ["onion soup star ships"])[0]
    )
    assert not found.vectors[1].any()
    assert vectors_of(encoder, []).shape == (0, 8)


def test_length_one_is_a_choice() -> None:
    np.testing.assert_allclose(np.linalg.norm(vectors_of(fit(), TEXTS), axis=1), 1, atol=1e-6)
    assert np.linalg.norm(vectors_of(fit(2, normalise=False), TEXTS), axis=1).max() < 0.999


def test_names_and_refusals() -> None:
    assert [hashed_dim(n) for n in ("hashed", "hashed:12", "hash", "minilm")] == [
        256,
        12,
        None,
        None,
    ]
    for name in ("hashed:", "hashed:0", "hashed:x", "hashed:9999"):
        with pytest.raises(DraftrecError, match="size from 1 to 4096"):
            hashed_dim(name)
    for texts in ([], ["?!"]):
        with pytest.raises(DraftrecError, match="no text with a word"):
            fit(texts=texts)
    with pytest.raises(DraftrecError, match="--max-tokens"):
        fit(max_tokens=5)
    assert load_encoder("hashed:3", EncoderConfig(), TEXTS).dim == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "ends"),
    [
        ("这位用户喜欢科幻电影和战争电影，尤其是九十年代的作品，常常给出很高的评", ("分", "价")),
        ("この利用者は九十年代の映画がとても好きで、いつも高い評価をつけていま", ("す", "せ")),
        ("ผู้ใช้คนนี้ชอบภาพยนตร์วิทยาศาสตร์และภาพยนตร์สงครามของยุคเก้าสิบมา", ("ก", "ย")),
        ("អ្នកប្រើនេះចូលចិត្តភាពយន្តវិទ្យាសាស្ត្រ និងភាពយន្តសង្គ្រា", ("ម", "ន")),
    ],
)
def test_texts_that_differ_in_one_character_are_near_in_every_script(
    stem: str, ends: tuple[str, str]
) -> None:
    texts = [stem + end for end in ends]
    one, other, stranger = vectors_of(fit(64, [*texts, *TEXTS]), [*texts, TEXTS[0]])
    assert one @ other > 0.9
    assert abs(one @ stranger) < 0.1
