"""Packed weights: the same products from few rows or many; some models are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from draftrec.engine.passes import prepacked
from draftrec.engine.passes.prepacked import PrepackedLinear, RowLinear, prepack
from tests.models import zoo


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with matrix tiles, as far as torch has the operators."""
    if not torch.backends.mkldnn.is_available() or not prepacked.packs_rightly():
        pytest.skip("this build of torch has no packed linear operators")
    monkeypatch.setattr(prepacked, "has_tiles", lambda: True)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_layer_multiplies_as_before(*, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 160, bias=bias).bfloat16()
    packed = PrepackedLinear(linear)
    x = torch.randn(2, 5, 96).bfloat16()
    torch.testing.assert_close(packed(x), linear(x), rtol=2e-2, atol=2e-2)
    assert packed.weight.shape == linear.weight.shape
    assert packed.weight.dtype == torch.bfloat16


@pytest.mark.usefixtures("tiles")
@torch.inference_mode()
def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(1)
    packed = PrepackedLinear(nn.Linear(1024, 512).bfloat16())
    x = torch.randn(1, 64, 1024).bfloat16()
    everything = packed(x)
    for rows in (4, 5, 8, 16, 20, 64):
        assert torch.equal(packed(x[:, :rows]), everything[:, :rows])


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
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_tied_embeddings_keep_their_values() -> None:
    model = zoo.build("llama", tie_word_embeddings=True)
    embeddings = model.get_input_embeddings().weight
    before = copy.deepcopy(embeddings)
    prepack(model)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_other_types_are_left_alone() -> None:
    assert prepack(zoo.build("llama").to(torch.float16)) == 0
    assert prepack(zoo.build("falcon")) == 1  # all but the head are linear layers of its own


@pytest.mark.usefixtures("tiles")
def test_bfloat16_goes_to_matrix_tiles_where_there_are_some() -> None:
    model = zoo.build("llama").bfloat16()
    assert prepack(model)
    assert isinstance(model.get_output_embeddings(), PrepackedLinear)
    assert prepack(zoo.build("falcon").bfloat16()) == 0
    wide = zoo.build("llama")
    assert prepack(wide)
    assert isinstance(wide.get_output_embeddings(), RowLinear)
