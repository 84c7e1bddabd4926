"""`draftrec compare`: good runs pass the default limits, planted faults do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sacrebleu import sentence_bleu

from draftrec.cli.main import run
from draftrec.evaluate.compare.limits import read_limits
from tests.evaluate.compare.test_ctr import baseline_auc, write_fold, write_trials
from tests.evaluate.run_folders import changed, varied_texts, write_run

pytest.importorskip("sacrebleu")

EXAMPLES = Path(__file__).parents[3] / "examples" / "quality"
TEXTS = varied_texts(60)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_run(tmp_path / "base", TEXTS, draft="none", cut=["u3"])


def compare(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = run(["compare", *(str(w) for w in words), "--resamples", "200"])
    return code, *capsys.readouterr()


def found(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, dict[str, Any]]:
    code, out, err = compare(capsys, *words, "--json")
    assert code in (0, 1), err
    return code, json.loads(out.splitlines()[-1])


def outcomes(summary: dict[str, Any], run_name: str, outcome: str) -> set[str]:
    return {v["metric"] for v in summary["runs"][run_name]["limits"] if v["outcome"] == outcome}


@pytest.mark.slow
def test_an_equal_strict_run_passes(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = write_run(tmp_path / "strict", TEXTS, cut=["u3"])
    code, summary = found(capsys, base, strict)
    assert (code, summary["passed"], summary["entities"]) == (0, True, 60)
    result = summary["runs"]["strict"]
    assert result["must_equal_baseline"]
    assert result["metrics"]["exact_match"]["value"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert result["metrics"]["eos_rate"]["value"]["value"] == round(59 / 60, 6)
    assert result["metrics"]["new_tokens"]["change"]["value"] == 0.0
    assert "token for token, in all 60 texts" in " ".join(summary["findings"])


@pytest.mark.slow
def test_strict_runs_that_differ_in_half_precision_name_it_as_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_run(tmp_path / "plain", TEXTS, dtype="bfloat16", draft="none")
    other = {**TEXTS, "u3": TEXTS["u3"] + " more", "u4": "else"}
    strict = write_run(tmp_path / "strict", other, dtype="bfloat16")
    code, summary = found(capsys, plain, strict)
    assert code == 1
    assert "not bit for bit" in summary["runs"]["strict"]["rounding"]
    said = " ".join(summary["findings"])
    assert "Precision is a likely cause of the 2 texts in which strict differs from plain" in said
    assert "--exact" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "tokenizer"),
    [
        ("这位用户喜欢{}电影，尤其是{}年代的作品。", "zh"),
        ("ผู้ใช้ชอบภาพยนตร์{}ของยุค{}มาก", "char"),
        ("The user likes {} films of the {}.", "13a"),
    ],
)
def test_the_tokenizer_follows_the_texts_and_is_said_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, tokenizer: str
) -> None:
    written = [text.format("一二三四五"[i], "甲乙丙丁戊"[-i]) for i in range(5)]
    if tokenizer != "zh":
        written = [text.format(f"x{i}", f"y{i}") for i in range(5)]
    texts = {f"u{i}": t for i, t in enumerate(written)}
    folders = [write_run(tmp_path / name, texts) for name in ("base", "same")]
    code, out, err = compare(capsys, *folders, "--json", "--output", tmp_path / "report")
    assert code in (0, 1), err
    summary = json.loads(out.splitlines()[-1])
    assert summary["facts"]["tokenizer"] == tokenizer
    said = f"sacrebleu's tokenizer {tokenizer}"
    assert said in " ".join(err.split())
    for name in ("report.md", "report.html", "compare.json"):
        page = (tmp_path / "report" / name).read_text()
        assert said in page.replace("&#39;", "'")
    by_hand = [
        sentence_bleu(t, [o for o in written if o != t], tokenize=tokenizer).score / 100
        for t in written
    ]
    value = summary["runs"]["base"]["metrics"]["self_bleu"]["value"]["value"]
    assert value == pytest.approx(sum(by_hand) / 5, abs=1e-6)


@pytest.mark.slow
def test_one_other_token_breaks_a_strict_run(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {**TEXTS, "u7": TEXTS["u7"] + " more"}
    code, summary = found(capsys, base, write_run(tmp_path / "strict", texts, cut=["u3"]))
    assert code == 1
    assert outcomes(summary, "strict", "broken") == {"exact_match"}


@pytest.mark.slow
def test_a_mild_relaxed_run_passes_and_a_wild_one_does_not(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mild = write_run(tmp_path / "mild", changed(TEXTS, 0.1), relaxed=2, accept="relaxed")
    wild = write_run(tmp_path / "wild", changed(TEXTS, 1.0), relaxed=20, accept="relaxed")
    assert found(capsys, base, mild)[0] == 0
    code, summary = found(capsys, base, mild, wild)
    assert code == 1
    assert summary["runs"]["mild"]["outcome"] == "kept"
    assert outcomes(summary, "wild", "broken") >= {"similarity_kept", "relaxed_share"}
    assert "exact_match" not in outcomes(summary, "wild", "broken")  # equality is not promised


@pytest.mark.slow
def test_texts_that_run_on_or_repeat_themselves_are_caught(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looped = {e: f"{t} {t}" for e, t in TEXTS.items()}
    folder = write_run(tmp_path / "looped", looped, accept="relaxed", cut=list(TEXTS)[:20])
    _, summary = found(capsys, base, folder)
    assert outcomes(summary, "looped", "broken") >= {"new_tokens", "eos_rate", "repetition"}


@pytest.mark.slow
def test_texts_that_grow_alike_are_caught(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = dict.fromkeys(TEXTS, TEXTS["u0"])
    _, summary = found(capsys, base, write_run(tmp_path / "alike", alike, accept="relaxed"))
    assert outcomes(summary, "alike", "broken") >= {"self_bleu", "distinct_2", "similarity_kept"}


@pytest.mark.slow
def test_titles_of_others_count_beyond_the_baselines_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = [f"Film{i} Number{i}" for i in range(60)]
    items, prompts = tmp_path / "items.jsonl", tmp_path / "prompts.jsonl"
    items.write_text(
        "\n".join(json.dumps({"item_id": i, "title": t}) for i, t in enumerate(titles))
    )
    rows = [{"entity_id": f"u{i}", "history": [i]} for i in range(60)]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    famous = {e: f"{t} Film0 Number0" for e, t in TEXTS.items()}
    leaky = {f"u{i}": f"{famous[f'u{i}']} {titles[(i + 7) % 60]}" for i in range(60)}
    base = write_run(tmp_path / "base", famous)
    same = write_run(tmp_path / "same", famous)
    leak = write_run(tmp_path / "leak", leaky, accept="relaxed")
    code, summary = found(capsys, base, same, leak, "--titles", items, "--prompts", prompts)
    figures = {
        n: r["metrics"]["titles_leaked"]["value"]["value"] for n, r in summary["runs"].items()
    }
    assert figures == {"base": round(59 / 60, 6), "same": round(59 / 60, 6), "leak": 1.966667}
    assert (code, summary["runs"]["same"]["outcome"]) == (1, "kept")
    assert "titles_leaked" in outcomes(summary, "leak", "broken")


@pytest.mark.slow
def test_a_missing_entity_breaks_its_limit(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = {e: t for e, t in TEXTS.items() if e != "u5"}
    _, summary = found(capsys, base, write_run(tmp_path / "fewer", fewer, cut=["u3"]))
    assert outcomes(summary, "fewer", "broken") == {"missing_share"}
    assert summary["entities"] == 59


@pytest.mark.slow
def test_few_entities_decide_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = varied_texts(5)
    base, strict = write_run(tmp_path / "b", few), write_run(tmp_path / "s", few)
    code, summary = found(capsys, base, strict)
    assert (code, summary["runs"]["s"]["outcome"]) == (1, "undecided")
    lenient = tmp_path / "l.yaml"
    lenient.write_text("undecided: pass")
    assert found(capsys, base, strict, "--limits", lenient)[0] == 0


@pytest.mark.slow
def test_shares_of_few_texts_stay_open_unless_the_texts_had_to_be_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That all of 24 texts end is no proof that 5 % do not: of 24, none of 10 % is seen often."""
    few = varied_texts(24)
    base, strict = write_run(tmp_path / "b", few), write_run(tmp_path / "s", few)
    assert found(capsys, base, strict)[0] == 0
    other = {**few, "u3": few["u3"] + " more"}
    relaxed = write_run(tmp_path / "r", other, accept="relaxed", relaxed=1)
    code, summary = found(capsys, base, relaxed)
    assert (code, outcomes(summary, "r", "undecided")) == (1, {"eos_rate"})
    change = summary["runs"]["r"]["metrics"]["eos_rate"]["change"]
    assert change["value"] == 0.0
    assert change["low"] == pytest.approx(-1.96 / 26, abs=1e-3)


@pytest.mark.slow
def test_prompts_that_no_run_kept_are_not_measured(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = write_run(tmp_path / "strict", TEXTS, cut=["u3"])
    (strict / "stats-00000.parquet").unlink()
    code, summary = found(capsys, base, strict)
    assert code == 0
    assert "other_prompts" in outcomes(summary, "strict", "not measured")


@pytest.mark.slow
def test_the_form_is_the_runs_templates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {e: f"one, two, own{e}" for e in TEXTS}
    broken = {e: t if e == "u1" else f"{t}, a, b, c" for e, t in texts.items()}
    base = write_run(tmp_path / "base", texts, template="once")
    run_folder = write_run(tmp_path / "run", broken, template="once", accept="relaxed")
    _, summary = found(capsys, base, run_folder, "--limits", EXAMPLES / "once.yaml")
    assert summary["runs"]["base"]["metrics"]["template_valid"]["value"]["value"] == 1.0
    assert summary["runs"]["run"]["faults"] == {"too many phrases": 59}
    assert "template_valid" in outcomes(summary, "run", "broken")


@pytest.mark.slow
def test_click_models_are_paired_and_limited(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = write_run(tmp_path / "strict", TEXTS, cut=["u3"])
    before = write_trials(tmp_path / "ctr-a", baseline_auc)
    worse = write_trials(tmp_path / "ctr-b", lambda m, s: baseline_auc(m, s) - 0.01)
    few = write_trials(tmp_path / "ctr-c", baseline_auc, 2)
    ctr = ("--ctr", f"base={before}", "--ctr")
    code, summary = found(capsys, base, strict, *ctr, f"strict={worse}")
    assert (code, outcomes(summary, "strict", "broken")) == (1, {"auc", "logloss"})
    assert len(summary["runs"]["strict"]["click_models"]) == 4
    figures = [summary["runs"][n]["metrics"]["auc"]["value"]["value"] for n in ("base", "strict")]
    assert figures == [0.71, 0.7]
    code, summary = found(capsys, base, strict, *ctr, f"strict={few}")
    assert (code, outcomes(summary, "strict", "undecided")) == (1, {"auc", "logloss"})
    assert found(capsys, base, strict, *ctr, f"strict={before}")[0] == 0
    for fold in range(3):
        write_fold(tmp_path / f"base-{fold}", fold, 0.0)
        write_fold(tmp_path / f"strict-{fold}", fold, 0.01)
    folds = [w for n in ("base", "strict") for w in ("--ctr", f"{n}={tmp_path / n}-[0-9]")]
    code, summary = found(capsys, base, strict, *folds)
    assert (code, outcomes(summary, "strict", "broken")) == (1, {"auc", "logloss"})
    cells = summary["runs"]["strict"]["click_models"]
    assert {(c["seeds"], c["over"], c["change"]["mean"]) for c in cells} == {
        (3, "splits", -0.01),
        (3, "splits", 0.01),
    }


def vectors(path: Path, shift: float) -> Path:
    rows = [[float(i), 1.0 + shift, float(i % 7)] for i in range(len(TEXTS))]
    kind = pa.list_(pa.float32(), 3)
    pq.write_table(pa.table({"entity_id": list(TEXTS), "vector": pa.array(rows, kind)}), path)
    return path


@pytest.mark.slow
def test_vectors_take_the_place_of_tf_idf(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = write_run(tmp_path / "strict", TEXTS, cut=["u3"])
    a, b = vectors(tmp_path / "a.parquet", 0.0), vectors(tmp_path / "b.parquet", 0.5)
    given = ("--vectors", f"base={a}", "--vectors")
    _, summary = found(capsys, base, strict, *given, f"strict={a}")
    assert summary["facts"]["similarity"] == "cosine of vectors"
    assert summary["runs"]["strict"]["metrics"]["vectors_equal"]["value"]["value"] == 1.0
    _, summary = found(capsys, base, strict, *given, f"strict={b}")
    metrics = summary["runs"]["strict"]["metrics"]
    assert metrics["vectors_equal"]["value"]["value"] == 0.0
    assert metrics["similarity"]["value"]["value"] < 1.0


@pytest.mark.slow
def test_vectors_of_two_encoders_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where they are equally long, as those of hashed encoders fitted on each run's texts."""
    strict = write_run(tmp_path / "strict", TEXTS, cut=["u3"])
    a, b = vectors(tmp_path / "a.parquet", 0.0), vectors(tmp_path / "b.parquet", 0.0)
    given = (base, strict, "--vectors", f"base={a}", "--vectors", f"strict={b}")

    def made_by(path: Path, encoder: str, pooling: str) -> None:
        manifest = {"fingerprints": {"encoder": encoder}, "pooling": pooling}
        path.with_name(f"{path.name}.manifest.json").write_text(json.dumps(manifest))

    made_by(a, "x", "mean")
    assert compare(capsys, *given)[0] == 0  # nothing is known of the other
    made_by(b, "x", "mean")
    assert compare(capsys, *given)[0] == 0
    for encoder, pooling in (("y", "mean"), ("x", "cls")):
        made_by(b, encoder, pooling)
        code, _, err = compare(capsys, *given)
        assert (code, err.count("\n")) == (2, 1)
        assert "are of two encoders" in err
    table = pq.read_table(b)
    short = pa.array([row[:2] for row in table["vector"].to_pylist()], pa.list_(pa.float32(), 2))
    pq.write_table(table.set_column(1, "vector", short), b)
    made_by(b, "x", "mean")
    assert compare(capsys, *given)[0] == 2


@pytest.mark.slow
def test_the_report_is_written_and_always_the_same(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = write_run(tmp_path / "x", changed(TEXTS, 0.3), accept="relaxed", relaxed=1)
    files: list[dict[str, bytes]] = []
    for name in ("one", "two"):
        code, _, err = compare(capsys, base, f"<b>odd|run</b>={odd}", "--output", tmp_path / name)
        assert code in (0, 1), err
        files.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert files[0].keys() == {"compare.json", "report.md", "report.html"}
    assert files[0] == files[1]
    page = files[0]["report.html"].decode()
    assert "<b>odd" not in page
    assert "<svg" in page
    assert "self-BLEU" in page
    markdown = files[0]["report.md"].decode()
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert {row.replace("\\|", "").count("|") for row in rows if "length" in row} == {3, 4}
    assert json.loads(files[0]["compare.json"])["baseline"] == "base"


def test_without_sacrebleu_it_says_what_to_install(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    code, out, err = compare(capsys, base, write_run(tmp_path / "strict", TEXTS))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert 'pip install "draftrec[compare]"' in err


@pytest.mark.parametrize("name", ["kar", "trawl", "once", "rlmrec"])
def test_examples_of_limits_load(name: str) -> None:
    limits = read_limits(EXAMPLES / f"{name}.yaml")
    assert limits.form.framework == name
    assert limits.limits["template_valid"].required
    assert "template_valid" in (limits.columns or ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{base}"], "name a baseline and at least one run"),
        (["{base}", "{base}"], "two paths of the name 'base'"),
        (["{base}", "x={none}"], "not a folder"),
        (["{base}", "x={base}", "--ctr", "base"], "must be NAME=PATH"),
        (["{base}", "x={base}", "--ctr", "base={base}*.none"], "finds no folder"),
        (["{base}", "x={base}", *["--ctr", "x={base}"] * 2], "twice for 'x'"),
        (["{base}", "x={base}", "--ctr", "y={base}"], "names 'y', but the runs are base, x"),
        (["{base}", "x={base}", "--ctr", "x={base}"], "give it for 'base' and another run"),
        (["{base}", "x={base}", "--vectors", "x={base}"], "'base' has none"),
        (["{base}", "x={base}", "--titles", "t.csv"], "belong together"),
        (["{base}", "x={base}", "--limits", "{none}.yaml"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    places = {"base": base, "none": tmp_path / "none"}
    code, out, err = compare(capsys, *(w.format(**places) for w in words))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
