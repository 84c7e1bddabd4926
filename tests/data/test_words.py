"""Words and what stands for them in scripts without spaces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrec.data.words import bleu_tokenizer, count_words, features, units, unspaced

CHINESE = "我喜欢iPhone手机，很好。"
THAI = "ฉันรักภาพยนตร์ไทย"
LAO = "ຂ້ອຍຮັກໜັງ"
KHMER = "ខ្ញុំចូលចិត្តភាពយន្ត"
BURMESE = "ကျွန်တော်ရုပ်ရှင်ကြိုက်တယ်"
JAPANESE = "スーパーマリオは楽しい映画です"
KOREAN = "한국 영화를 좋아합니다"
HINDI = "मुझे हिन्दी फ़िल्में अच्छी लगती हैं"


@pytest.mark.slow
@given(st.text(st.characters(codec="latin-1")))
def test_texts_of_latin_letters_are_words_as_ever(text: str) -> None:
    assert units(text) == re.findall(r"\w+", text)
    assert list(features(text, 2)) == re.findall(r"\b\w\w+\b", text.lower())
    assert count_words(text) == len(text.split())


def test_characters_stand_for_words_without_spaces() -> None:
    assert units(CHINESE) == ["我", "喜", "欢", "iPhone", "手", "机", "很", "好"]
    assert list(features("手机，iPhone好")) == ["手", "机", "手机", "iphone", "好"]
    assert units("รักไทย") == ["รั", "ก", "ไ", "ท", "ย"]
    assert "マリオ" not in units(JAPANESE)
    assert "ー" in units(JAPANESE)


def test_marks_belong_to_their_letters() -> None:
    assert units(HINDI) == HINDI.split()
    assert units("cafe\u0301 nai\u0308ve") == ["caf\u00e9", "na\u00efve"]
    assert len(units("\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f")) == 1
    assert units("ＡＢＣ映画") == ["ABC", "映", "画"]


@pytest.mark.parametrize(
    ("text", "tokenizer", "spaceless"),
    [
        (CHINESE, "zh", True),
        ("The film 霸王别姬 is one of the best that he has watched this year, he says", "zh", True),
        ("The film was reviewed by 王 and others, who all of them liked it very much", "13a", True),
        (JAPANESE, "char", True),
        (THAI, "char", True),
        (LAO, "char", True),
        (KHMER, "char", True),
        (BURMESE, "char", True),
        (KOREAN, "13a", False),
        (HINDI, "13a", False),
        ("Plain words", "13a", False),
        ("", "13a", False),
    ],
)
def test_the_tokenizer_follows_the_scripts(text: str, tokenizer: str, spaceless: bool) -> None:  # noqa: FBT001
    assert bleu_tokenizer([text]) == tokenizer
    assert unspaced(text) is spaceless


def test_words_are_estimated_where_they_cannot_be_seen() -> None:
    assert count_words("one two-three, four") == 3
    assert count_words("科幻动作电影") == 3
    assert count_words("我喜欢 iPhone 手机") == 4
    assert 4 <= count_words(THAI) <= 6
    assert count_words("") == 0
