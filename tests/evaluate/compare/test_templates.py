"""The forms that the four frameworks ask for."""

from __future__ import annotations

import json

import pytest

from draftrec.evaluate.compare.grounding import TextForm


def rlmrec(words: int, reasoning: int = 3) -> str:
    return json.dumps({"summarization": "w " * words, "reasoning": "r " * reasoning})


@pytest.mark.parametrize(
    ("form", "text", "faults"),
    [
        (TextForm("rlmrec"), rlmrec(100, 500), []),
        (TextForm("rlmrec"), f"```json\n{rlmrec(5)}\n```", []),
        (TextForm("rlmrec"), rlmrec(101), ["summarization too long"]),
        (TextForm("rlmrec", "item"), rlmrec(200, 200), []),
        (TextForm("rlmrec", "item"), rlmrec(201, 201),
         ["summarization too long", "reasoning too long"]),
        (TextForm("rlmrec"), '{"summarization": "x"}', ["no reasoning"]),
        (TextForm("rlmrec"), '{"summarization": ["x"], "reasoning": " "}',
         ["no summarization", "no reasoning"]),
        (TextForm("rlmrec"), '{"summarization": "x', ["not JSON"]),
        (TextForm("rlmrec"), "[1]", ["not a JSON object"]),
        (TextForm("rlmrec"), "[" * 100_000, ["not JSON"]),
        (TextForm("once"), "quiet sea tales, noir, comedy, drama, war", []),
        (TextForm("once"), "a, b, c, d, e, f", ["too many phrases"]),
        (TextForm("once"), "This user likes a great many things", ["phrase too long"]),
        (TextForm("once"), ", ;\n", ["empty"]),
        (TextForm("once", "item"), "[description] A sea tale.", []),
        (TextForm("once", "item"), "A sea tale. [description]", ["no [description] tag in front"]),
        (TextForm("once", "item"), " [description] ", ["empty"]),
        (TextForm("kar"), "Genres: drama. Themes of loss. A dark tone.", []),
        (TextForm("kar", min_factors=4), "Genre, themes, tone.", ["too few factors named"]),
        (TextForm("kar"), "The user likes drama.", ["too few factors named"]),
        (TextForm("kar", factors=("类型",)), "他喜欢的类型是科幻。", []),
        (TextForm("once"), "科幻电影，爱情、战争；九十年代喜剧", []),
        (TextForm("once"), "一，二，三，四，五，六", ["too many phrases"]),
        (TextForm("once"), "这位用户喜欢许多很好看的电影", ["phrase too long"]),
        (TextForm("rlmrec"), json.dumps({"summarization": "好" * 200, "reasoning": "好"}), []),
        (TextForm("rlmrec"), json.dumps({"summarization": "好" * 202, "reasoning": "好"}),
         ["summarization too long"]),
        (TextForm("kar", "item", ("mood", "era"), 2), "A gloomy mood.", ["too few factors named"]),
        (TextForm("trawl"), "Genre: war; theme: loss", []),
        (TextForm("trawl", "item"), "Anything.", []),
        (TextForm("trawl", "item"), " \n", ["empty"]),
    ],
)  # fmt: skip
def test_faults_are_named(form: TextForm, text: str, faults: list[str]) -> None:
    assert form.faults(text) == faults
