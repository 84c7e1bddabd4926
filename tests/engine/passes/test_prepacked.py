"""Packed weights: the same products from few rows or many; some models are left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from draftrec.engine.passes.prepacked import prepack
from tests.models import zoo


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
