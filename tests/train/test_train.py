"""The training loop: its rates, when it ends, what it keeps."""

from __future__ import annotations

import errno
import io
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from draftrec.data.files.writers import replace_file
from draftrec.errors import DraftrecError
from draftrec.items.prompts import HistoryEncoder
from draftrec.items.settings import PromptFormat
from draftrec.models.recommender import new_tokenizer
from draftrec.train.examples import IGNORED, Batch
from draftrec.train.files import TrainingFolder
from draftrec.train.loop import (
    ItemValidator,
    Trainer,
    TrainWatcher,
    Validation,
    answer_loss,
    learning_rate,
)
from draftrec.train.presets import stream_dropout
from draftrec.train.settings import TrainSettings
from tests.fakes import Killed

SETTINGS = TrainSettings(epochs=6, lr=0.1, weight_decay=0.0, dropout=0.0, patience=2, device="cpu")


class Line(nn.Module):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    @property
    def device(self) -> torch.device:
        return self.weight.device


class Scored:
    """Three steps an epoch towards w = 1; validations have the scores that they are given."""

    def __init__(self, scores: list[float], value: float = 1.0) -> None:
        self.scores, self.value, self.seen = iter(scores), value, []

    def steps(self) -> int:
        return 3

    def batches(self, epoch: int) -> Iterator[Batch]:
        for _ in range(3):
            yield {"x": torch.ones(1)}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        return ((model.weight - self.value) * batch["x"]).square().mean()

    def validate(self, model: Any) -> Validation | None:
        assert not model.training
        self.seen.append(float(model.weight.detach()))
        score = next(self.scores, None)
        return None if score is None else Validation({"score": score}, score)


def trained(folder: Path, task: Scored, **changes: Any) -> tuple[Line, Any]:
    model = Line()
    files = TrainingFolder(folder, "model.json")
    files.claim({}, overwrite=True)
    return model, Trainer(task, model, replace(SETTINGS, **changes), files).run(TrainWatcher())


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path):
    task = Scored([1.0, 5.0, 2.0, 5.0, 9.0, 9.0])
    model, progress = trained(tmp_path, task)
    assert (progress.best_epoch, progress.epoch) == (1, 4), "equal is not better"
    assert float(model.weight.detach()) == task.seen[1]
    assert [record["score"] for record in progress.epochs] == [1.0, 5.0, 2.0, 5.0]
    assert torch.equal(model.frozen, torch.ones(2, 2))


def test_without_validation_the_last_weights_are_kept(tmp_path: Path):
    task = Scored([])
    model, progress = trained(tmp_path, task)
    assert (progress.best_epoch, progress.epoch) == (5, 6)
    assert float(model.weight.detach()) == task.seen[-1]


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path):
    with pytest.raises(DraftrecError, match="loss became nan in step 0"):
        trained(tmp_path, Scored([1.0], value=float("nan")))


class Broken(Scored):
    """Validations whose loss is no number, whatever their scores."""

    def validate(self, model: Any) -> Validation | None:
        found = super().validate(model)
        return found and Validation({"valid_loss": float("nan")}, found.score)


@pytest.mark.parametrize(
    ("task", "words"),
    [(Scored([float("nan")] * 6), "score is nan"), (Broken([1.0] * 6), "valid_loss is nan")],
)
def test_weights_that_say_no_number_from_the_first_epoch_on_are_refused(
    tmp_path: Path, task: Scored, words: str
):
    """It was a best.safetensors that does not exist, or a model of no numbers."""
    with pytest.raises(DraftrecError, match=rf"{words} after epoch 1; lower --lr"):
        trained(tmp_path, task)


def test_weights_that_say_no_number_later_are_not_the_best(tmp_path: Path):
    task = Scored([1.0, float("inf"), float("nan")])
    model, progress = trained(tmp_path, task)
    assert (progress.best_epoch, progress.epoch) == (0, 3)
    assert float(model.weight.detach()) == task.seen[0]


def _other(state: dict[str, Any], **changes: Any) -> bytes:
    kept = io.BytesIO()
    torch.save({**state, **changes}, kept)
    return kept.getvalue()


@pytest.mark.parametrize("name", ["state.pt", "best.safetensors"])
@pytest.mark.parametrize("how", ["damaged", "other", "renamed"])
def test_what_a_training_cannot_go_on_from_is_refused(tmp_path: Path, name: str, how: str):
    """Weights of other names were left out without a word, and best ones told by a traceback."""
    trained(tmp_path, Scored([1.0] * 6))
    files = TrainingFolder(tmp_path, "model.json")
    state = torch.load(files.checkpoint)
    found = {
        ("state.pt", "other"): _other({}),
        ("state.pt", "renamed"): _other(state, weights={"layer.weight": torch.zeros(())}),
        ("best.safetensors", "other"): save({"weight": torch.zeros(2)}),
        ("best.safetensors", "renamed"): save({"layer.weight": torch.zeros(())}),
    }
    (tmp_path / name).write_bytes(found.get((name, how), b"nothing"))
    with pytest.raises(DraftrecError, match=f"{name} is damaged, or another version"):
        Trainer(Scored([]), Line(), SETTINGS, files).run(TrainWatcher())


def test_tensorboard_gets_the_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard")
    trained(tmp_path, Scored([1.0, 2.0]), epochs=2)
    assert list((tmp_path / "logs").glob("events.*"))


def test_tensorboard_on_a_full_disk_ends_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
):
    """It ended the training, and the thread that writes showed a traceback."""
    gfile = pytest.importorskip("tensorboard.compat.tensorflow_stub.io.gfile")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Filling(Scored):
        def validate(self, model: Any) -> Validation | None:
            monkeypatch.setattr(gfile.LocalFileSystem, "append", full)
            return super().validate(model)

    _, progress = trained(tmp_path, Filling([1.0, 2.0, 3.0]), epochs=3)
    assert progress.epoch == 3
    [said] = caplog.messages
    assert "the training goes on: OSError: [Errno 28] No space left" in said
    assert "Traceback" not in capsys.readouterr().err


def test_a_kill_at_the_last_checkpoint_costs_no_epoch_of_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They were written behind it, and never again where nothing was left to train."""

    def killed(path: Path, content: bytes) -> None:
        if content.count(b"\n") == 2:
            path.with_name(f"{path.name}.tmp").write_bytes(b"half")
            raise Killed
        replace_file(path, content)

    with monkeypatch.context() as patched:
        patched.setattr("draftrec.train.files.replace_file", killed)
        with pytest.raises(Killed):
            trained(tmp_path, Scored([1.0, 2.0]), epochs=2)
    files = TrainingFolder(tmp_path, "model.json")
    Trainer(Scored([2.0]), Line(), replace(SETTINGS, epochs=2), files).run(TrainWatcher())
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 2
    assert not list(tmp_path.glob("*.tmp"))


def test_the_rate_rises_then_falls_to_zero():
    settings = TrainSettings(lr=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] < 0.01
    assert learning_rate(55, 100, settings) == pytest.approx(0.5)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_dropout_acts_in_training_alone_and_goes_away(architecture: str):
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    torch.manual_seed(0)
    config: Any = {
        "llama": LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2,
        ),
        "gpt2": GPT2Config(
            vocab_size=20, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0,
            attn_pdrop=0,
        ),
    }[architecture]  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([[1, 2, 3]])
    plain = model.eval()(input_ids=ids).logits
    with stream_dropout(model, 0.5):
        assert torch.equal(model.eval()(input_ids=ids).logits, plain)
        model.train()
        parts = sum(len(m._forward_hooks) for m in model.modules())
        assert parts == 1 + 2 * 2, "embeddings, and two parts of each layer"
        assert not torch.allclose(model(input_ids=ids).logits, plain)
    assert torch.equal(model(input_ids=ids).logits, plain)


SMALL = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 60,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gemma2", "cohere", "gpt2", "opt"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_that_foretell_no_answer_never_meet_the_vocabulary(kind: str, reduction: str):
    more = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {}
    more |= {"ffn_dim": 32, "word_embed_proj_dim": 16} if kind == "opt" else {}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **more))
    model.eval()
    ids = torch.randint(1, 60, (3, 9))
    labels = torch.where(torch.rand(3, 9) < 0.4, ids, IGNORED)
    seen: list[torch.Size] = []
    model.get_output_embeddings().register_forward_hook(lambda _, i, __: seen.append(i[0].shape))
    whole = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = cross_entropy(whole, labels[:, 1:].flatten(), reduction=reduction)
    expected.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = answer_loss(model, {"input_ids": ids, "labels": labels}, reduction)
    found.backward()
    assert seen[1] == (int((labels[:, 1:] != IGNORED).sum()), 16)
    torch.testing.assert_close(found, expected)
    for name, parameter in model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-5)
    model(input_ids=ids)
    assert seen[2] == (3, 9, 16)


@pytest.mark.parametrize("kind", ["llama", "granite", "cohere", "gemma2", "gpt2"])
def test_an_item_models_loss_is_of_the_scores_that_the_model_gives(kind: str):
    """Those of its output layer, before a model scales or caps them, were taken."""
    more: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2} if kind == "gpt2" else {}
    more |= {"logits_scaling": 0.1} if kind == "granite" else {"logit_scale": 9.0}
    more |= {"final_logit_softcapping": 0.05, "initializer_range": 0.5}
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **more))
    model.eval().requires_grad_(False)
    items = np.arange(4, 44, dtype=np.int32)[:, None]
    encoder = HistoryEncoder(PromptFormat(), new_tokenizer([f"<i_{i}>" for i in range(40)]), items)
    histories = [np.arange(n) for n in (3, 0, 7, 1)]
    targets = [np.array([n, n + 9]) for n in (5, 6, 7, 8)]
    expected = 0.0
    for history, target in zip(histories, targets, strict=True):
        ids = torch.from_numpy(encoder.encode(history)).long()[None]
        expected -= float(model(input_ids=ids).logits[0, -1, 4:44].log_softmax(-1)[target[0]]) / 4
    found = ItemValidator(encoder, histories, targets)(model)
    assert found.metrics["valid_loss"] == pytest.approx(expected, rel=1e-4)


def test_models_without_a_layer_of_the_vocabulary_score_every_row():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(60, 60)

        def get_output_embeddings(self) -> None:
            return None

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return type("Output", (), {"logits": self.table(input_ids)})

    model, ids = Bare(), torch.randint(1, 60, (2, 5))
    labels = torch.where(torch.arange(5) > 2, ids, IGNORED)
    expected = cross_entropy(model.table(ids[:, 2:4]).flatten(0, 1), ids[:, 3:].flatten())
    found = answer_loss(model, {"input_ids": ids, "labels": labels}, "mean")
    torch.testing.assert_close(found, expected)


def test_norms_in_mixed_precision_are_no_news(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    class Normed(Scored):
        def loss(self, model: Any, batch: Batch) -> torch.Tensor:
            nn.RMSNorm(4)(torch.ones(2, 4, dtype=torch.bfloat16))
            return super().loss(model, batch)

    torch.set_warn_always(True)
    try:
        trained(tmp_path, Normed([0.0]), epochs=1)
        assert not [w for w in recwarn if "Mismatch dtype" in str(w.message)]
        nn.RMSNorm(4)(torch.ones(2, 4, dtype=torch.bfloat16))
        assert [w for w in recwarn if "Mismatch dtype" in str(w.message)]
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("room", [0, 100, 1500])
def test_a_full_disk_keeps_the_checkpoint_and_is_one_sentence(tmp_path: Path, room: int):
    folder = TrainingFolder(tmp_path, "model.json")
    folder.claim({}, overwrite=True)
    folder.save({"weights": torch.ones(9)}, [])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OSError, match="too large") as error:
            folder.save({"weights": torch.zeros(9999)}, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(folder.checkpoint))
    assert not list(tmp_path.glob("*.tmp"))
    state = folder.load()
    assert state is not None
    assert state["weights"].tolist() == [1.0] * 9


def test_a_crash_while_the_best_weights_are_written_keeps_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trained(tmp_path, Scored([1.0] * 6))
    before = (tmp_path / "best.safetensors").read_bytes()

    def torn(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("draftrec.train.loop.save_file", torn)
    files = TrainingFolder(tmp_path, "model.json")
    (tmp_path / "state.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        Trainer(Scored([9.0]), Line(), SETTINGS, files).run(TrainWatcher())
    assert (tmp_path / "best.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
