"""What models are trained on: a file's parts train and valid, each user's once."""

from __future__ import annotations

import json
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


def test_an_item_without_an_id_costs_its_user_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One such item refused the whole file."""
    rows = [
        (7, [0, 99, 1], "train"), (7, [98, 2], "valid"), (8, [97], "train"), (8, [1], "valid"),
        (9, [2, 0], "train"), (9, [96], "valid"),
    ]  # fmt: skip
    path = tmp_path / "sequences.jsonl"
    keys = ("user", "items", "part")
    path.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    found = read_training_data(str(path), SIDS, None, with_valid=False)
    assert [one.tolist() for one in found.train] == [[0, 1], [2, 0]]
    assert [one.tolist() for one in found.valid_histories] == [[0, 1], []]
    assert [one.tolist() for one in found.valid_targets] == [[2], [1]]
    assert found.unknown == 4
    said = "4 items in the histories of 3 users have no semantic id and are left out, such as item"
    assert f"{said} 99 of user 7" in caplog.text
