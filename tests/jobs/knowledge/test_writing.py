"""`Generator.generate` as people write Python: what goes in, what comes out, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from draftrec.config import make_config
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.generator import Generator
from draftrec.jobs.knowledge.writing import Texts
from draftrec.pool import costs as module
from draftrec.pool.store import Pool
from tests.models import zoo
from tests.models.folders import save, word

NEW = 6
ROWS = [
    {"entity_id": f"u{i}", "prompt": f"{word(5 + i)} {word(9)}", "group": "g", "age": i}
    for i in range(5)
]
PROMPTS = [row["prompt"] for row in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(zoo.build("llama"), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return Generator.from_pretrained(
        folder, device="cpu", max_new_tokens=NEW, budget=4, batch_size=2
    )


@pytest.fixture(scope="module")
def expected(generator: Generator) -> list[str]:
    """Each prompt by itself, as transformers writes it."""
    model: Any = zoo.build("llama")
    found = []
    for prompt in PROMPTS:
        ids = generator.tokenizer(prompt, return_tensors="pt")
        done = model.generate(**ids, do_sample=False, max_new_tokens=NEW, pad_token_id=0)
        new = done[0, ids.input_ids.shape[1] :]
        found.append(generator.tokenizer.decode(new, skip_special_tokens=True))
    assert len(set(found)) > 2
    return found


def dataset() -> Any:
    return pytest.importorskip("datasets").Dataset.from_list(ROWS)


def iterable_dataset() -> Any:
    return dataset().to_iterable_dataset()


class Columns:
    """A table of a library that nobody has heard of, but which speaks Arrow."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return pa.Table.from_pylist(ROWS).__arrow_c_stream__(requested_schema)


FRAMES: dict[str, Callable[[], Any]] = {
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas with an index": lambda: pd.DataFrame(ROWS, index=[7, 7, 3, 1, 0]),
    "polars": lambda: pl.DataFrame(ROWS),
    "polars, lazy": lambda: pl.LazyFrame(ROWS),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "arrow batch": lambda: pa.RecordBatch.from_pylist(ROWS),
    "arrow, of others": Columns,
    "datasets": dataset,
}
SEVERAL: dict[str, Callable[[], Any]] = {
    **FRAMES,
    "texts": lambda: PROMPTS,
    "tuple": lambda: tuple(PROMPTS),
    "iterator": lambda: iter(PROMPTS),
    "records": lambda: ROWS,
    "iterator of records": lambda: (dict(row) for row in ROWS),
    "both": lambda: [PROMPTS[0], *ROWS[1:]],
    "array": lambda: np.array(PROMPTS),
    "pandas series": lambda: pd.Series(PROMPTS),
    "polars series": lambda: pl.Series(PROMPTS),
    "arrow array": lambda: pa.array(PROMPTS),
    "datasets, iterable": iterable_dataset,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SEVERAL)
def test_whatever_holds_records_goes_in(
    kind: str, generator: Generator, expected: list[str]
) -> None:
    assert generator.generate(SEVERAL[kind]()) == expected


def test_one_prompt_is_one_text(generator: Generator, expected: list[str]) -> None:
    assert generator.generate(PROMPTS[1]) == expected[1]
    assert generator.generate(ROWS[1]) == expected[1]
    assert generator.generate(PROMPTS[1:2]) == expected[1:2]


@pytest.mark.parametrize("kind", FRAMES)
def test_frames_come_back_with_their_texts(
    kind: str, generator: Generator, expected: list[str]
) -> None:
    given = FRAMES[kind]()
    made = generator.generate(given, as_frame=True)
    of_arrow = kind.startswith("arrow")
    assert type(made) is (pa.Table if of_arrow else type(given))
    if kind == "polars, lazy":
        made = made.collect()
    table = made.to_dict("list") if isinstance(made, pd.DataFrame) else None
    if table is None:
        table = made.to_dict() if kind == "datasets" else None
    if table is None:
        table = made.to_pydict() if of_arrow else made.to_dict(as_series=False)
    assert table["text"] == expected
    assert table["age"] == [0, 1, 2, 3, 4]
    assert set(table["finish_reason"]) <= {"eos", "length"}
    assert table["prompt_tokens"] == [2] * 5
    assert all(0 < n <= NEW for n in table["new_tokens"])
    if kind == "pandas with an index":
        assert made.index.tolist() == [7, 7, 3, 1, 0]


@pytest.mark.parametrize("kind", FRAMES)
def test_empty_input_gives_an_empty_result(kind: str, generator: Generator) -> None:
    full = FRAMES[kind]()
    if kind == "arrow, of others":
        empty: Any = pa.Table.from_pylist(ROWS)[:0]
    elif kind == "datasets":
        empty = full.select([])
    else:
        empty = full.slice(0, 0) if hasattr(full, "slice") else full.iloc[:0]
    assert generator.generate(empty) == []
    made = generator.generate(empty, as_frame=True)
    if kind == "polars, lazy":
        made = made.collect()
    assert len(made) == 0
    names = made.column_names if hasattr(made, "column_names") else list(made.columns)
    assert {"text", "new_tokens"} <= set(names)


def test_nothing_is_no_texts(generator: Generator) -> None:
    assert generator.generate([]) == []
    assert generator.generate(iter(())) == []
    empty = generator.generate([], full=True)
    assert len(empty) == empty.summary["entities"] == empty.summary["tokens_per_call"] == 0
    assert list(generator.stream([])) == []


def test_counts_and_a_summary_come_on_request(generator: Generator, expected: list[str]) -> None:
    found = generator.generate(ROWS, full=True)
    assert isinstance(found, Texts)
    assert found.texts == [str(text) for text in found] == expected
    assert [text.entity_id for text in found] == [row["entity_id"] for row in ROWS]
    assert {text.group for text in found} == {"g"}
    assert all(len(text.token_ids) == text.new_tokens for text in found)
    assert found.summary["new_tokens"] == sum(text.new_tokens for text in found)
    calls = sum(text.target_calls for text in found)
    assert found.summary["tokens_per_call"] == found.summary["new_tokens"] / calls
    assert found.summary["wall_seconds"] > 0
    for table in (found.to_arrow(), found.to_pandas(), found.to_polars()):
        assert list(table["text"])[1] in (expected[1], pa.scalar(expected[1]))
    assert generator.generate(PROMPTS[0], full=True).texts == expected[:1]


def test_templates_fill_prompts_from_fields(
    generator: Generator, expected: list[str], tmp_path: Path
) -> None:
    template = tmp_path / "t.j2"
    template.write_text("{% if title is defined %}{{ title }}{% endif %} " + word(9))
    frame = pd.DataFrame({"title": [word(5), None, np.nan, word(8)]})
    found = generator.generate(frame, template=str(template))
    bare = generator.generate(f" {word(9)}")
    assert found == [expected[0], bare, bare, expected[3]]
    record = {"title": word(6)}
    assert generator.generate(record, template=str(template)) == expected[1]


@pytest.mark.slow
def test_settings_of_one_call_load_nothing_anew(
    generator: Generator, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "from_pretrained", None)
    short = generator.generate(PROMPTS, max_new_tokens=2)
    assert all(a.startswith(b) for a, b in zip(expected, short, strict=True))
    assert short != expected
    plain = generator.generate(PROMPTS, draft="none", full=True)
    assert plain.texts == expected
    assert plain.summary["drafted_tokens"] == 0
    warm = [generator.generate(PROMPTS, temperature=2.0, seed=s) for s in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    assert generator.generate(PROMPTS) == expected


@pytest.mark.slow
def test_measured_costs_are_kept_for_each_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []
    real = module.measure_cost

    def counted(*given: Any, **more: Any) -> Any:
        measured.append(more["passes"])
        return real(*given, **more)

    monkeypatch.setattr(module, "measure_cost", counted)
    made = Generator.from_pretrained(folder, device="cpu", max_new_tokens=NEW, batch_size=2)
    for _ in range(2):
        made.generate(PROMPTS[:1], max_new_tokens=3)
        assert len(made.costs) == len(measured) == 1
    made.generate(PROMPTS[:1], max_new_tokens=4)
    assert len(made.costs) == len(measured) == 2


def test_finished_texts_join_the_pool(folder: Path) -> None:
    made = Generator.from_pretrained(folder, device="cpu", max_new_tokens=NEW, budget=4)
    made.generate(ROWS, max_new_tokens=5)
    assert made.pool is not None
    assert len(made.pool) > 0
    size = len(made.pool)
    made.generate(ROWS, draft="none")
    assert len(made.pool) == size


@pytest.mark.slow
def test_a_pool_may_be_named_by_its_folder(folder: Path, tmp_path: Path) -> None:
    made = Generator.from_pretrained(folder, device="cpu", max_new_tokens=NEW)
    made.generate(PROMPTS)
    assert made.pool is not None
    made.pool.save(tmp_path / "pool")
    other = Generator.from_pretrained(folder, device="cpu", pool=str(tmp_path / "pool"))
    assert isinstance(other.pool, Pool)
    assert len(other.pool) == len(made.pool)


@pytest.mark.slow
def test_records_are_read_as_they_are_needed(generator: Generator, expected: list[str]) -> None:
    read = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal read
        while True:
            read += 1
            yield ROWS[(read - 1) % 5]

    texts = generator.stream(endless())
    assert [next(texts).text for _ in range(5)] == expected
    assert read < 200
    read = 0
    assert generator.generate(endless(), limit=7) == [*expected, *expected[:2]]


def test_sampled_texts_belong_to_their_ids(generator: Generator) -> None:
    warm = {"temperature": 2.0, "seed": 3}
    forth, back = generator.generate(ROWS, **warm), generator.generate(ROWS[::-1], **warm)
    assert forth == back[::-1]


def test_special_tokens_act_in_texts_and_not_in_records(generator: Generator) -> None:
    end, text = generator.tokenizer.eos_token, f"{word(5)} {word(2)} {word(6)}"
    assert end == word(2)
    as_text, record = ([*generator.generate([g], full=True)] for g in (text, {"prompt": text}))
    assert as_text[0].prompt_tokens == 3
    assert record[0].prompt_tokens != 3 or record[0].text != as_text[0].text
    obeyed = generator.generate({"prompt": text}, special_tokens="obey", full=True)
    assert obeyed.texts == [as_text[0].text]
    split = generator.generate(text, special_tokens="split", full=True)
    assert split.texts == [record[0].text]


@pytest.mark.parametrize("where", ["in the prompt", "in the text"])
def test_what_a_model_thinks_before_it_answers_is_told_of_once(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, caplog: Any, where: str
) -> None:
    """It would join profiles and vectors unseen; a prompt may begin it before any text is there."""
    monkeypatch.setattr(generator, "_said", set())
    if where == "in the prompt":
        template = "{{ messages[0].content }} <think>\n"
        monkeypatch.setattr(generator.tokenizer, "chat_template", template)
    else:
        thought = "<think>\nThe user ... "
        monkeypatch.setattr(generator.tokenizer, "decode", lambda *_, **__: thought)
    for _ in range(2):
        generator.generate(PROMPTS[:2], min_new_tokens=2)
    (said,) = [r for r in caplog.records if "thinks before it answers" in r.getMessage()]
    assert said.levelname == "WARNING"
    assert "</think>" in said.getMessage()


def identity(_ids: Any, scores: Any) -> Any:
    return scores


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (None, {}, "None is given, where a text"),
    "a number": (5, {}, "an int is given"),
    "bytes": (b"hi", {}, "a bytes is given"),
    "numbers": ([1], {}, "record 1 is an int; give a text"),
    "a hole": ([PROMPTS[0], None], {}, "record 2 is None"),
    "no text": ("", {}, "record 1 cannot be served: the prompt is empty"),
    "a message": ([{"role": "user", "content": "hi"}], {}, "is a message of a chat"),
    "no prompt": ([{"title": "x"}], {}, "it has no 'prompt', but title; name the field with prom"),
    "null": (
        [{"entity_id": "b", "prompt": None}],
        {},
        r"record 1 \('b'\) cannot be served: prompt",
    ),
    "a null id": ([{"entity_id": None, "prompt": "x"}], {}, "entity_id is null"),
    "a list of ids": ([{"entity_id": [1], "prompt": "x"}], {}, "entity_id is list"),
    "a text and a template": ("x", {"template": "kar"}, "is a text, and template 'kar_user' needs"),
    "a field": ([{"age": 1}], {"template": "kar"}, "history is null"),
    "an item": ([{"title": "x"}], {"template": "kar"}, "history is null; .* give side='item'"),
    "unknown template": (ROWS, {"template": "karr"}, "neither one of kar"),
    "unknown setting": ("x", {"temprature": 1}, "'temprature'; is 'temperature' meant"),
    "value": ("x", {"temperature": -1}, "temperature=-1 is not allowed"),
    "choice": ("x", {"accept": "lax"}, "accept='lax' is not allowed"),
    "side": ("x", {"side": "left"}, "side='left' is not allowed"),
    "loaded": ("x", {"dtype": "bfloat16"}, "'dtype' is decided when the model is loaded"),
    "chat": ("x", {"chat": True}, "no chat template"),
    "system": ("x", {"system": "y"}, "system needs a chat template"),
    "long": (f"{word(5)} " * 300, {}, "300 tokens"),
    "an array without dimension": (np.array("x"), {}, "a ndarray is given, where a text"),
    "a class": (Iterator, {}, "an ABCMeta is given"),
    "a class of frames": (pl.DataFrame, {}, "a type is given"),
    "no end": ("x", {"temperature": float("inf")}, "temperature=inf is not allowed: .* finite"),
    "no number": ("x", {"presence_penalty": float("nan")}, "=nan is not allowed: .* finite"),
    "endless bias": ("x", {"logit_bias": "5=inf"}, "'5=inf' is not TOKEN=BIAS"),
    "a processor alone": ("x", {"processors": identity}, "put a single one into a list"),
    "no processor": ("x", {"processors": ["y"]}, "'y', which cannot be called"),
    "no tensor": ("x", {"processors": [lambda _, s: s.numpy()]}, "returned ndarray; it must"),
    "no frame": (PROMPTS, {"as_frame": True}, "as_frame needs a data frame"),
    "taken": (pd.DataFrame({"prompt": ["x"], "text": ["y"]}), {"as_frame": True}, "column 'text'"),
    "twice": (pd.DataFrame([["x", "y"]], columns=["prompt", "prompt"]), {}, "two columns"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_refusal_is_a_draftrec_error(case: str, generator: Generator) -> None:
    given, settings, words = REFUSED[case]
    with pytest.raises(DraftrecError, match=words):
        generator.generate(given, **settings)


def test_several_data_sets_are_refused(generator: Generator) -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": dataset(), "test": dataset()})
    with pytest.raises(DraftrecError, match=r"\(train, test\).*data\['train'\]"):
        generator.generate(both)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": None}, "needs a model"),
        ({"model": "nowhere/at/all"}, "does not exist"),
        ({"model": "x", "accept": "lax"}, "accept='lax' is not allowed"),
        ({"model": "x", "max_new_tokens": 0}, "max_new_tokens=0 is not allowed"),
        ({"model": "x", "pool": 5}, "pool=5 is neither a pool nor"),
        ({"model": "x", "processors": identity}, "put a single one into a list"),
        ({"config": make_config("x"), "max_new_tokens": 3}, "a config, or a model and settings"),
    ],
)
def test_loading_refuses_in_one_kind(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(DraftrecError, match=words):
        Generator.from_pretrained(**settings)
