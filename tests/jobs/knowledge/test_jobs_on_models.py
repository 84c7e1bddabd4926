"""Jobs with a real, if tiny, model: what stand-ins cannot show."""

from __future__ import annotations

import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrec.cli.main import run
from draftrec.config import DraftConfig
from draftrec.core import EMPTY_TREE, DraftTree, Request, SequenceView
from draftrec.demo.shop import demo_model_path
from draftrec.engine.packing import Segment
from draftrec.engine.passes.frozen import FrozenRunner
from draftrec.errors import DraftrecError, Interrupted
from draftrec.jobs.knowledge import generator as module
from draftrec.jobs.knowledge.generator import Generator
from draftrec.models import loading
from draftrec.pool.drafter import PoolDrafter

NEW = 40


@pytest.fixture(scope="module")
def model() -> Path:
    path = demo_model_path()
    if not (path / "config.json").exists():
        pytest.skip("the demo's model is not there")
    return path


def load(model: Path, **settings: Any) -> Generator:
    defaults = {"device": "cpu", "max_new_tokens": NEW, "budget": 8, "batch_size": 1}
    return Generator.from_pretrained(model, **(defaults | settings))


@pytest.mark.slow
def test_a_text_drafts_from_one_that_was_finished_in_the_same_call(model: Path) -> None:
    generator = load(model)
    prompt = generator.encode(["A reader of quiet sea tales"])[0]
    twins = [Request("first", prompt, key=0), Request("second", prompt, key=0)]
    without = generator.run(twins)
    assert without[0].counts.target_calls == without[1].counts.target_calls
    grown = load(model)
    first, second = grown.run(
        twins, on_text=lambda request, text: grown.commit([(text.token_ids, request.group)])
    )
    assert first.token_ids.tolist() == second.token_ids.tolist()
    assert second.counts.target_calls < first.counts.target_calls
    assert sum(second.counts.accepted_by_source[2:]) > 0


@pytest.mark.slow
def test_running_texts_stay_what_they_are_while_the_pool_grows_and_is_sorted_anew(
    model: Path,
) -> None:
    prompts = [f"A reader of tales number {i % 5}" for i in range(12)]
    texts = {}
    for draft in ("none", "pool"):
        generator = load(model, batch_size=3, draft=draft)
        requests = [
            Request(str(i), ids, f"g{i % 2}", key=i)
            for i, ids in enumerate(generator.encode(prompts))
        ]
        done = generator.run(
            requests, on_text=lambda r, g, it=generator: it.commit([(g.token_ids, r.group)])
        )
        texts[draft] = [g.token_ids.tolist() for g in done]
    assert texts["pool"] == texts["none"]
    assert generator.pool is not None
    assert len(generator.pool) == 12
    assert len(generator.pool.rows) == 12


class Asked(PoolDrafter):
    """Remembers how deep its trees were to be."""

    depths: ClassVar[set[int]] = set()

    def draft(self, batch: Seq[SequenceView], limit: int, depth: int) -> list[DraftTree]:
        self.depths.add(depth)
        return super().draft(batch, limit, depth)


@pytest.mark.slow
def test_a_relaxed_text_does_not_depend_on_its_neighbours(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how much room they have: after an interruption others may stand beside it."""
    monkeypatch.setattr(module, "PoolDrafter", Asked)
    found: dict[tuple[int, int], list[list[int]]] = {}
    for slots in (1, 4):
        generator = load(model, accept="relaxed", top_k=20, min_prob=0.01, batch_size=slots)
        ids = generator.encode([f"Reader {i} likes {'sea ' * i}tales" for i in range(6)])
        requests = [Request(str(i), x, key=i) for i, x in enumerate(ids)]
        generator.commit([(g.token_ids, None) for g in load(model).run(requests[::2])])
        for first in (0, 3):
            done = generator.run(requests[first:])
            found[slots, first] = [g.token_ids.tolist() for g in done]
    assert found[1, 0] == found[4, 0]
    assert found[1, 0][3:] == found[1, 3] == found[4, 3]
    assert Asked.depths == {DraftConfig().depth}


@pytest.mark.slow
def test_a_shard_of_rejected_records_is_written_and_the_job_ends(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"entity_id": i, "prompt": None if i < 2 else f"about {i}"} for i in range(4)]
    cases = {"all": rows[:1], "first": rows, "last": rows[::-1]}
    for name, records in cases.items():
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in records))
        line = ["generate", str(source), "--model", str(model), "--output", str(tmp_path / name)]
        for _ in range(2):
            more = ["--shard-size", "2", "--max-new-tokens", "4", "--json", "--budget", "4"]
            assert run([*line, *more]) == 3
            summary = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert (summary["entities"], summary["rejected"]) == (
                sum(r["prompt"] is not None for r in records),
                sum(r["prompt"] is None for r in records),
            )
            assert summary["times_plain"] is not None


@pytest.mark.slow
def test_a_fixed_budget_has_an_estimate_too_and_plain_decoding_is_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"entity_id": i, "prompt": f"A reader of tales number {i % 2}"} for i in range(6)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for draft in ("pool", "none"):
        output = tmp_path / draft
        line = ["generate", str(source), "--model", str(model), "--output", str(output)]
        more = ["--draft", draft, "--budget", "8", "--max-new-tokens", "24", "--batch-size", "2"]
        assert run([*line, *more, "--threads", "1", "--json"]) == 0
        out, err = capsys.readouterr()
        summary = json.loads(out.splitlines()[-1])
        assert summary["threads"] == 1
        if draft == "none":
            assert (summary["times_plain"], summary["times_plain_kind"]) == (1.0, "measured")
            assert "plain decoding: nothing was drafted, with --draft none" in err
            assert "tokens per call" not in err
        else:
            assert summary["times_plain"] > 0.0
            assert summary["times_plain_kind"] == "estimated"
            assert summary["pool_share"] > 0.0
            for phase in ("loading the model", "measuring what a pass"):
                assert phase in err


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_exact_texts_are_plain_ones_in_any_batch(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"entity_id": i, "prompt": f"A reader of {'sea ' * (i % 3)}tales"} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts: dict[str, list[str]] = {}
    for name, more in (
        ("plain", ["--draft", "none", "--batch-size", "1"]),
        ("alone", ["--budget", "16", "--batch-size", "1"]),
        ("batch", ["--budget", "6", "--batch-size", "4"]),
    ):
        output = tmp_path / name
        line = ["generate", str(source), "--model", str(model), "--output", str(output), "--exact"]
        assert run([*line, *more, "--dtype", dtype, "--max-new-tokens", "64", "--json"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out.splitlines()[-1])["exact"] == "bit for bit"
        said = "strict texts are those of plain decoding, bit for bit" in err
        assert said == (name != "plain")
        table = pq.read_table(sorted(output.glob("part-*.parquet")))
        texts[name] = table["text"].to_pylist()
    assert texts["plain"] == texts["alone"] == texts["batch"]


@pytest.mark.slow
def test_frozen_passes_write_the_same_texts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, but not handed to torch's compiler, which takes its time."""
    monkeypatch.setattr(FrozenRunner, "backend", "eager")
    source = tmp_path / "in.jsonl"
    rows = [{"entity_id": i, "prompt": f"A reader of {'sea ' * (i % 3)}tales"} for i in range(9)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["generate", str(source), "--model", str(model), "--max-new-tokens", "48"]
    line += ["--dtype", "float32", "--budget", "6", "--batch-size", "4"]
    settings = tmp_path / "settings.yaml"
    settings.write_text("pass: frozen\nexact: true\n")
    texts: dict[str, list[str]] = {}
    for name, more in (
        ("eager", ["--pass", "eager"]),
        ("frozen", ["--pass", "frozen"]),
        ("exact", ["--config", str(settings)]),
    ):
        output = tmp_path / name
        assert run([*line, *more, "--output", str(output)]) == 0
        said = capsys.readouterr().err
        assert "not frozen" not in said
        table = pq.read_table(sorted(output.glob("part-*.parquet")))
        texts[name] = table["text"].to_pylist()
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["settings"]["pass"] == ("eager" if name == "eager" else "frozen")
        assert manifest["exact"] == (name == "exact")
    assert texts["eager"] == texts["frozen"] == texts["exact"]
    # The same job by the option's earlier name.
    assert run([*line, "--compile", "--output", str(tmp_path / "frozen")]) == 0
    assert run([*line, "--output", str(tmp_path / "frozen")]) == 2
    assert "pass was frozen, now auto" in capsys.readouterr().err
    assert run([*line, "--pass", "thawed", "--output", str(tmp_path / "other")]) == 2


@pytest.fixture(scope="module")
def narrow_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's, its weights stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "narrow"
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    narrow_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Begun where bfloat16 is not multiplied, or by an earlier version; the processor of the
    machine where it goes on has it."""
    source = tmp_path / "in.jsonl"
    rows = [{"entity_id": i, "prompt": f"A reader of tales number {i}"} for i in range(4)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = ["generate", str(source), "--model", str(narrow_model), "--max-new-tokens", "8"]
    job += ["--shard-size", "2", "--json", "--output"]
    first = Generator.run

    def once(self: Generator, *given: Any, **more: Any) -> Any:
        if (tmp_path / "run/part-00000.parquet").exists():
            raise Interrupted
        return first(self, *given, **more)

    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "run", once)
        assert run([*job, str(tmp_path / "run")]) == 130
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: True)
    for name, dtype in (("run", "float32"), ("new", "bfloat16")):
        capsys.readouterr()
        assert run([*job, str(tmp_path / name)]) == 0
        out, err = capsys.readouterr()
        settings = json.loads((tmp_path / name / "manifest.json").read_text())["settings"]
        assert (json.loads(out.splitlines()[-1])["dtype"], settings["dtype"]) == (dtype, "auto")
        assert ("computing in bfloat16" in err) == (dtype == "bfloat16")


@pytest.mark.slow
def test_cached_keys_and_values_may_be_as_narrow_as_the_weights(narrow_model: Path) -> None:
    by_hand = load(narrow_model, dtype="bfloat16")
    wide, narrow = (
        load(narrow_model, dtype="bfloat16", kv_dtype=kv, pass_="eager") for kv in ("auto", "model")
    )
    assert narrow.target.bytes_per_token * 2 == wide.target.bytes_per_token
    assert by_hand.target.bytes_per_token == narrow.target.bytes_per_token, "rounded already"
    prompt = wide.encode(["A reader of quiet sea tales"])[0]
    found: list[torch.Tensor] = []
    for generator in (wide, narrow):
        (text,) = generator.run([Request("a", prompt, key=0)])
        assert len(text.token_ids) > 1
        asked = Segment(0, 0, prompt, EMPTY_TREE, length=len(prompt))
        found.append(generator.target.score([asked]).logits.float())
    assert narrow.target.slab is not None
    assert narrow.target.slab.keys[0].dtype == torch.bfloat16
    apart = (found[0] - found[1]).abs().max() / found[0].std()
    assert 0.0 < float(apart) < 0.1, "another rounding"
    for other, named in (({"exact": True}, "exact"), ({"pass_": "frozen"}, "pass frozen")):
        with pytest.raises(DraftrecError, match=f"{named} and kv_dtype"):
            load(narrow_model, kv_dtype="model", **other)
