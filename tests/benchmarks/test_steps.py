"""A dry run of the benchmark of steps, on the shipped model; what llama.cpp is given."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peer_llama_cpp
import pytest
import steps
import torch
from knowledge_live import Asked
from step_tables import steps as section
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

ROOT = Path(__file__).resolve().parents[2]


def small_llama(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).float().eval()


def side_by_side(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions as llama.cpp has them for Llamas: `x` [heads, rows, dim], `angles` [rows,
    dim / 2] of numbers `2 i` and `2 i + 1`."""
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


def test_queries_and_keys_meet_as_before_in_the_order_that_llama_cpp_wants() -> None:
    heads, rows, dim, width = 3, 5, 8, 16
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads * dim, width, generator=generator) for _ in range(2))
    x = torch.randn(rows, width, generator=generator)
    angles = torch.arange(rows)[:, None] * 10 ** -torch.linspace(0, 2, dim // 2)

    def split(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).view(rows, heads, dim).transpose(0, 1)

    both = torch.cat([angles, angles], -1)[None]
    turned = apply_rotary_pos_emb(split(query)[None], split(key)[None], both.cos(), both.sin())
    ours = (turned[0] @ turned[1].mT)[0]
    ordered = [split(peer_llama_cpp.beside(w, heads)) for w in (query, key)]
    theirs = side_by_side(ordered[0], angles) @ side_by_side(ordered[1], angles).mT
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_is_written_for_llama_cpp_without_loss(tmp_path: Path, dtype: torch.dtype) -> None:
    gguf = pytest.importorskip("gguf")
    model = small_llama(dtype)
    told = peer_llama_cpp.write_gguf(model, tmp_path / "model.gguf")
    assert told == str(dtype).removeprefix("torch.")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(tensors) == 3 + 9 * 2
    found = tensors["blk.1.ffn_down.weight"]
    expected = model.model.layers[1].mlp.down_proj.weight.detach()
    assert found.shape.tolist() == [48, 32]  # the fastest dimension first
    if dtype == torch.bfloat16:
        assert found.tensor_type == gguf.GGMLQuantizationType.BF16
        wide = np.ascontiguousarray(found.data).view(np.uint16).astype(np.uint32) << 16
        np.testing.assert_array_equal(wide.view(np.float32).reshape(32, 48), expected)
    else:
        np.testing.assert_array_equal(found.data, expected)
    assert tensors["blk.0.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_rotary_positions_that_llama_cpp_would_not_know_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = small_llama(torch.float32)
    model.config.rope_parameters["rope_type"] = "yarn"
    with pytest.raises(ValueError, match="ordinary rotary positions"):
        peer_llama_cpp.write_gguf(model, tmp_path / "model.gguf")


class FakePeer:
    """Writes a wrong third token of the last text."""

    modules, drafts = ("json",), False
    about = {"version": "fake 1", "weights": "float32", "cache": "float32"}  # noqa: RUF012

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model

    def greedy(self, prompts: Any, tokens: int) -> Any:
        found = steps.greedy(self.model, prompts, tokens)
        found[-1, 2] += 1
        return found.tolist()


class BrokenPeer(FakePeer):
    def __init__(self, model: Any, folder: Path) -> None:
        raise RuntimeError("no such\n instruction")


class MissingPeer(FakePeer):
    modules = ("json", "no_such_engine")


def test_a_peer_is_compared_first_and_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = {"fake": FakePeer, "broken": BrokenPeer, "missing": MissingPeer}
    monkeypatch.setattr(steps, "PEERS", engines)
    prompts = np.random.default_rng(0).integers(5, 90, (4, 20))
    peers, known = steps.start_peers(small_llama(torch.float32), prompts, tmp_path)
    assert list(peers) == ["fake"]
    assert (known["fake"]["same_tokens"], known["fake"]["of_tokens"]) == (3 * 16 + 2, 64)
    assert known["broken"] == {"skipped": "RuntimeError: no such instruction"}
    assert known["missing"] == {"skipped": "no_such_engine not installed"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", sorted(steps.PEERS))
def test_a_peer_writes_texts_as_transformers_does(name: str, tmp_path: Path) -> None:
    """Greedy with a penalty that sees the prompt, texts of unlike lengths, more than at a time."""
    for module in steps.PEERS[name].modules:
        pytest.importorskip(module)
    model = small_llama(torch.float32)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(5, 90, n).astype(np.int32) for n in (20, 3, 9, 14)]
    expected = [
        model.generate(
            torch.from_numpy(p).long()[None], max_new_tokens=12, do_sample=False,
            repetition_penalty=1.3, eos_token_id=None, pad_token_id=0,
        )[0, len(p):].tolist()
        for p in prompts
    ]  # fmt: skip
    end = expected[0][4]
    expected = [x[: x.index(end) + 1] if end in x else x for x in expected]
    peer = steps.PEERS[name](model, tmp_path)
    asked = Asked(2, 12, 1.3, 0.0, 0, frozenset([end]))
    assert peer.write(prompts, asked) == expected
    drawn = peer.write(prompts, Asked(3, 5, 1.0, 0.8, 0, frozenset()))
    assert [len(x) for x in drawn] == [5] * 4
    peer.close()


def test_break_even_is_a_step_with_drafts_over_a_plain_one() -> None:
    seconds = {
        "plain generate": [0.09, 0.09],
        "plain packed": [0.08, 0.08],
        "plain by_hand": [0.04, 0.06],
        "plain llama_cpp": [0.05, 0.05],
        "drafts packed": [0.16, 0.16],
        "drafts by_hand": [0.1, 0.1],
        "drafts llama_cpp": [0.2, 0.2],
    }
    found = steps._cells(4, seconds)
    plain, drafts = found["batch_4_plain"]["by_hand"], found["batch_4_drafts"]["by_hand"]
    assert plain["over_llama_cpp"] == {"median": 1.0, "low": 0.8, "high": 1.2, "n": 2}
    assert drafts["over_llama_cpp"]["median"] == 0.5
    assert drafts["break_even"]["llama_cpp"]["median"] == 2.0
    assert drafts["break_even"]["generate"]["median"] == 1.111
    assert "over_openvino" not in plain
    assert found["batch_4_drafts"]["packed"]["ms"]["median"] == 160.0
    known = {
        "llama_cpp": {
            "version": "l 1", "weights": "bfloat16", "cache": "float16", "same_tokens": 63,
            "of_tokens": 64,
        },
        "openvino": {"skipped": "openvino not installed"},
    }  # fmt: skip
    read = {"read_ms": {"median": 1.0, "low": 1.0, "high": 1.0}}
    page = section({"context": 9, "nodes": 8, "models": {"m": {**read, "peers": known, **found}}})
    assert "63 of 64 tokens" in page
    assert "not measured (openvino not installed)" in page
    assert page.count("| m | 4 |") == 4


@pytest.mark.slow
def test_steps_are_measured(tmp_path: Path) -> None:
    model = ROOT / "src" / "draftrec" / "assets" / "demo-lm"
    line = [
        sys.executable, "benchmarks/steps.py", "--model", str(model), "--no-random", "--batch", "2",
        "--context", "20", "--rounds", "2", "--results", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "steps.json").read_text())
    cells = found["models"]["demo-lm"]
    plain, drafts = cells["batch_2_plain"], cells["batch_2_drafts"]
    assert set(plain) >= {"transformers", "generate", "packed", "by_hand"}
    assert set(drafts) >= {"transformers", "packed", "by_hand"}
    assert drafts["by_hand"]["ms"]["n"] == 2
    for name, peer in steps.PEERS.items():
        if any(importlib.util.find_spec(m) is None for m in peer.modules):
            assert "not installed" in cells["peers"][name]["skipped"]
            assert name not in plain
        else:
            assert cells["peers"][name]["same_tokens"] > 0
            assert f"over_{name}" in plain["by_hand"]
