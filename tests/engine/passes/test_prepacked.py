"""Packed weights: the same products from few rows or many; some models are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from draftrec.engine.passes import prepacked
from draftrec.engine.passes.prepacked import PrepackedLinear, is_prepacked, prepack
from tests.models import zoo

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def _needs_operators() -> None:
    if not prepacked.usable(torch.float32):
        pytest.skip("this build of torch has no packed linear operators")


@pytest.fixture
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack the zoo's tiny layers as well."""
    monkeypatch.setitem(prepacked._LEAST_USUAL_SIZE, torch.float32, 0)


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_layer_multiplies_as_before(dtype: torch.dtype, *, bias: bool) -> None:
    if not prepacked.usable(dtype):
        pytest.skip("this processor, or this build of torch, packs no weights of the type")
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias).to(dtype)
    packed = PrepackedLinear(linear)
    x = torch.randn(2, 5, 96).to(dtype)
    close = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(packed(x), linear(x), rtol=close, atol=close)
    assert packed.weight.shape == linear.weight.shape
    assert packed.weight.dtype == dtype


@BOTH
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    if not prepacked.usable(dtype):
        pytest.skip("no packed bfloat16 on this processor")
    torch.manual_seed(1)
    packed = PrepackedLinear(nn.Linear(1024, 512).to(dtype))
    x = torch.randn(1, 64, 1024).to(dtype)
    everything = packed(x)
    for rows in (4, 5, 8, 16, 20, 64):
        assert torch.equal(packed(x[:, :rows]), everything[:, :rows])


@pytest.mark.usefixtures("small_counts")
@pytest.mark.parametrize("name", zoo.PACKED)
def test_a_packed_model_says_what_it_said(name: str) -> None:
    model = zoo.build(name)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        replaced = prepack(model)
        after = model(input_ids=ids).logits
    linear = sum(type(m) is nn.Linear for m in zoo.plain(name).modules())
    assert replaced == linear
    assert is_prepacked(model) == (linear > 0)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_counts")
def test_tied_embeddings_keep_their_values() -> None:
    model = zoo.build("llama", tie_word_embeddings=True)
    embeddings = model.get_input_embeddings().weight
    before = copy.deepcopy(embeddings)
    prepack(model)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_small_float32_and_padded_models_are_left_alone() -> None:
    assert prepack(zoo.build("llama")) == 0
    assert prepack(zoo.build("falcon").bfloat16()) == 0
    assert prepack(zoo.build("llama").to(torch.float16)) == 0


def test_a_float32_model_of_large_layers_is_packed_whole() -> None:
    size = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1, "head_dim": 128}
    model = zoo.build("llama", **size)
    linear = sum(type(m) is nn.Linear for m in model.modules())
    assert prepack(model) == linear == 8
    assert isinstance(model.get_output_embeddings(), PrepackedLinear)
