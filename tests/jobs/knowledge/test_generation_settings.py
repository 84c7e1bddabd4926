"""A model's own generation_config, options over it, and stop strings, through `Generator`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.generator import Generator
from tests.engine.text.helpers import PROMPTS, requests
from tests.models import zoo
from tests.models.folders import save, word

NEW = 20
FILE: dict[str, Any] = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3}
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.9}


def folder(path: Path, **wanted: Any) -> Path:
    model: Any = zoo.build("llama")
    for name, value in wanted.items():
        setattr(model.generation_config, name, value)
    return save(model, path / "model")


def load(path: Path, **settings: Any) -> Generator:
    defaults = {"device": "cpu", "max_new_tokens": NEW, "budget": 8, "batch_size": 3}
    return Generator.from_pretrained(path, **(defaults | settings))


def written(generator: Generator) -> list[list[int]]:
    return [g.token_ids.tolist() for g in generator.run(requests())]


def plain(**wanted: Any) -> list[list[int]]:
    """transformers' own greedy texts."""
    texts: list[list[int]] = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        out = zoo.plain("llama").generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
            eos_token_id=2, pad_token_id=0, **wanted,
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    return texts


@pytest.mark.slow
def test_greedy_keeps_the_models_penalties_and_leaves_its_sampling(tmp_path: Path) -> None:
    made = load(folder(tmp_path, **FILE, **SAMPLING))
    assert written(made) == plain(**FILE) != plain()
    said = made.resolved.sentence()
    assert said
    assert "repetition_penalty=1.3" in said
    assert "no_repeat_ngram_size=3" in said
    assert "top_k" not in said


@pytest.mark.slow
def test_options_override_the_file(tmp_path: Path) -> None:
    path = folder(tmp_path, **FILE)
    assert written(load(path, repetition_penalty=1.0, no_repeat_ngram_size=0)) == plain()
    assert written(load(path, repetition_penalty=1.8)) == plain(
        **FILE | {"repetition_penalty": 1.8}
    )
    assert written(load(path, generation_config="none")) == plain()


def test_sampling_takes_the_files_cuts_unless_told(tmp_path: Path) -> None:
    path = folder(tmp_path, **SAMPLING)
    warping = load(path, temperature=1.0)._warping()
    assert warping is not None
    assert (warping.temperature, warping.top_k, warping.top_p) == (1.0, 3, 0.9)
    told = load(path, temperature=1.0, sample_top_k=0, top_p=1.0)._warping()
    assert told is not None
    assert not told.cuts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [("num_beams", 4), ("guidance_scale", 1.5), ("penalty_alpha", 0.6)]
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    path = folder(tmp_path, **{name: value})
    with pytest.raises(DraftrecError, match=f"{name}=.*--generation-config none"):
        load(path)
    assert written(load(path, generation_config="none")) == plain()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "warmth"),
    [
        ("repetition_penalty", -2.0, 0.0),
        ("repetition_penalty", "1.1", 0.0),
        ("no_repeat_ngram_size", 2.5, 0.0),
        ("no_repeat_ngram_size", 3.0, 0.0),
        ("top_p", 1.5, 1.0),
        ("top_k", -1, 1.0),
        ("top_k", 50.0, 1.0),
    ],
)
def test_values_that_mean_nothing_are_refused_as_transformers_does(
    tmp_path: Path, name: str, value: Any, warmth: float
) -> None:
    path = folder(tmp_path)
    settings = path / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {name: value}))
    with pytest.raises(DraftrecError, match=f"{name}={json.dumps(value)}, which must be a "):
        load(path, temperature=warmth)
    assert written(load(path, generation_config="none")) == plain()
    if name in SAMPLING:  # greedy texts leave it
        assert written(load(path)) == plain()


@pytest.mark.slow
def test_counts_below_one_are_off_as_in_transformers(tmp_path: Path) -> None:
    path = folder(tmp_path, no_repeat_ngram_size=-1)
    made = load(path)
    assert made.resolved.sentence() is None
    assert written(made) == plain()


@pytest.mark.slow
def test_one_text_is_one_stop_string_and_no_list_of_letters(tmp_path: Path) -> None:
    path = folder(tmp_path)
    stop = word(plain()[0][3])
    assert written(load(path, stop=stop)) == written(load(path, stop=(stop,)))
    assert load(path, bad_words=stop).config.controls.bad_words == (stop,)


def test_what_was_taken_is_part_of_what_a_run_depends_on(tmp_path: Path) -> None:
    one = load(folder(tmp_path / "a", **FILE)).fingerprint["generation_config"]
    other = load(folder(tmp_path / "b")).fingerprint["generation_config"]
    assert one != other == ""


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 8])
def test_a_stop_string_ends_a_text_where_plain_decoding_completes_it(
    tmp_path: Path, budget: int
) -> None:
    texts = plain()
    stop = f"{word(texts[1][6])} {word(texts[1][7])}"  # across a token border
    done = load(folder(tmp_path), stop=(stop,), budget=budget).run(requests())
    assert done[1].token_ids.tolist() == texts[1][:8]
    assert done[1].finish_reason == "stop"
    assert load(folder(tmp_path), stop=(stop,)).decode(done[1].token_ids) == "".join(
        f"{word(t)} " for t in texts[1][:6]
    )
    assert done[0].token_ids.tolist() == texts[0]


class Never:
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.token] = -torch.inf
        return scores


@pytest.mark.slow
def test_a_processor_of_ones_own(tmp_path: Path) -> None:
    token = plain()[0][0]
    path, expected = folder(tmp_path), plain(suppress_tokens=[token])
    assert written(load(path, processors=[Never(token)])) == expected != plain()
    later = load(path)
    assert written(later.with_settings(processors=[Never(token)])) == expected
    assert written(later) == plain()


def test_a_processor_with_another_shape_is_named(tmp_path: Path) -> None:
    def flat(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores[0]

    with pytest.raises(DraftrecError, match="returned"):
        load(folder(tmp_path), processors=[flat]).run(requests())
