"""What models are trained on: a file's parts train and valid, each user's once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from draftrec.errors import DraftrecError
from draftrec.items.semantic_ids import SemanticIds
from draftrec.train.examples import read_training_data

SIDS = SemanticIds.from_codes(
    np.arange(3), np.array([[0, 2], [0, 3], [1, 2]], np.int32), ["<a_0>", "<a_1>", "<b_0>", "<b_1>"]
)
ROWS = '{"user": 7, "items": [0, 1], "part": "train"}\n{"user": 7, "items": [2], "part": "valid"}\n'


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_user_with_two_rows_of_one_part_is_refused(tmp_path: Path, part: str) -> None:
    """The last row alone was learnt from, without a word."""
    path = tmp_path / "sequences.jsonl"
    path.write_text(ROWS)
    assert len(read_training_data(str(path), SIDS, None, with_valid=False).train) == 1
    path.write_text(ROWS + f'{{"user": 7, "items": [1], "part": "{part}"}}\n')
    with pytest.raises(DraftrecError, match=f"user 7 has two rows of part '{part}'; join them"):
        read_training_data(str(path), SIDS, None, with_valid=False)
