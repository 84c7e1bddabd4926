"""Features in files: those of the plain model, computed once, the same however often it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from draftrec.engine.target import Target
from draftrec.errors import DraftrecError
from draftrec.train.drafter import texts as features
from draftrec.train.drafter.texts import FeatureFiles
from tests.models import zoo


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_TEXTS", 4)
    monkeypatch.setattr(features, "_CHUNK", 7)


def texts() -> list[np.ndarray]:
    """Eleven texts, most of which begin alike; one is another's beginning."""
    rng = np.random.default_rng(0)
    lead = rng.integers(3, 97, 12)
    found = [
        np.concatenate([lead[: 12 - i], rng.integers(3, 97, 3 + 2 * i)]).astype(np.int32)
        for i in range(10)
    ]
    return [*found, found[0][:9]]


def compute(files: FeatureFiles, stop_at: int | None = None) -> bool:
    target, seen = Target(zoo.build("llama")), []
    files.claim()
    return files.compute(target, seen.append, lambda: len(seen) == stop_at)


def test_features_are_the_plain_models(tmp_path: Path) -> None:
    ids, model = texts(), zoo.plain("llama")
    files = FeatureFiles(tmp_path / "f", ids, "m")
    assert compute(files)
    assert not files.missing
    for i, text in enumerate(ids):
        plain = model.base_model(input_ids=torch.from_numpy(text[None]).long())
        assert files[i].dtype == torch.float16
        expected = plain.last_hidden_state[0, :-1]
        torch.testing.assert_close(files[i].float(), expected, rtol=2e-3, atol=2e-3)


def test_an_interruption_changes_no_byte(tmp_path: Path) -> None:
    whole, cut = (FeatureFiles(tmp_path / name, texts(), "m") for name in ("whole", "cut"))
    assert compute(whole)
    assert not compute(cut, stop_at=6)
    assert cut.missing == [1, 2]
    assert compute(cut)
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (cut.folder / path.name).read_bytes()


def test_what_lies_there_of_other_texts_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    compute(FeatureFiles(folder, texts(), "m"))
    same = FeatureFiles(folder, texts(), "m")
    same.claim()
    assert not same.missing
    for other in (FeatureFiles(folder, texts(), "n"), FeatureFiles(folder, texts()[:-1], "m")):
        other.claim()
        assert other.missing == [0, 1, 2]
        compute(other)
    other.clear()
    assert not folder.exists()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    compute(FeatureFiles(tmp_path, texts(), "m"))
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:40])
    files = FeatureFiles(tmp_path, texts(), "m")
    with pytest.raises(DraftrecError, match="is damaged; remove it"):
        _ = [files[i] for i in range(11)]
