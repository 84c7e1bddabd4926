"""The sequential model beside generative targets: it learns a planted habit, its table is made."""

from __future__ import annotations

import json
from pathlib import Path

import genrec_tables
import numpy as np
import sasrec
import torch


def test_what_always_comes_next_is_learnt(tmp_path: Path) -> None:
    """Of 24 items in a circle the next one is always taken, wherever a user begins."""
    random = np.random.default_rng(0)
    rows = [{"user": 200, "items": [3], "part": "test"}]  # of whom nothing is known
    for user in range(200):
        first, n = random.integers(0, 24), random.integers(3, 9)
        items = [int(item) for item in (first + np.arange(n + 3)) % 24]
        parts = {"train": items[:n], "valid": items[n : n + 1], "test": items[n + 1 :]}
        rows += [{"user": user, "items": part, "part": name} for name, part in parts.items()]
    sids = [{"item": item, "sid": [f"a{item % 4}", f"b{item}"]} for item in range(24)]
    for name, lines in (("sequences", rows), ("sids", sids)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sasrec.main([
        *(f"--{name}={tmp_path / name}.jsonl" for name in ("sequences", "sids")), "--width", "16",
        "--heads", "2", "--dropout", "0.1", "--lr", "0.01", "--epochs", "12", "--batch", "16",
        "--results", str(tmp_path),
    ])  # fmt: skip
    found = json.loads((tmp_path / "sasrec-beauty.json").read_text())
    assert found["users"] == 200
    for part in sasrec.PARTS:
        for way in sasrec.WAYS:
            ways = found["test"][part][way]["ways"]
            assert len(ways) == 3
            # Two targets each, the first of which is the one after the last known item.
            assert all(one["recall@1"] > 0.48 and one["ndcg@1"] > 0.96 for one in ways.values())
    for chosen in found["variants"].values():
        values = chosen["valid_ndcg@20"]
        assert chosen["epochs"] == 1 + int(np.argmax(values)) <= 12
        assert max(values) > 0.96
    text = genrec_tables.sasrec(found)
    assert f"{ways['cosines']['recall@10']:.4f} / {ways['cosines']['ndcg@10']:.4f}" in text


def test_no_item_sees_those_that_come_later_or_fill_up() -> None:
    args = sasrec._parser().parse_args(["--width", "8", "--last", "6"])
    model = sasrec.SasRec(10, args, 0.07).eval()
    alone = model(*sasrec.padded([np.array([1, 2, 3])]))
    beside = model(*sasrec.padded([np.array([1, 2, 3]), np.array([4, 5, 6, 7, 8])]))
    assert torch.allclose(alone[0], beside[0, :3], atol=1e-6)
    with torch.no_grad():  # PyTorch then takes another path through its layers
        assert torch.allclose(model(*sasrec.padded([np.array([1, 2, 3])])), alone, atol=1e-6)
    other = model(*sasrec.padded([np.array([1, 2, 9])]))
    assert torch.allclose(alone[0, :2], other[0, :2], atol=1e-6)
    assert not torch.allclose(alone[0, 2], other[0, 2], atol=1e-3)
    assert model.scores(alone[0]).abs().max().item() <= 1 / 0.07 + 1e-4
