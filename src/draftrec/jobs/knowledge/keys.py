"""What seeds the sampling of a text: who it is about, and which of that record's texts it is."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from draftrec.core import Request


def key_of(entity_id: str) -> int:
    """Seeds one entity's sampling, wherever it stands in the input and whoever asks."""
    return _digest(entity_id.encode())


def samples_of(first: Request, count: int) -> list[Request]:
    """Requests for `count` texts of a record, of which `first` is the first. The key of each is a
    matter of that of the first and of its own number, not of how many there are."""
    return [replace(first, key=_key_of_sample(first.key, i), sample=i) for i in range(count)]


def _key_of_sample(key: int, sample: int) -> int:
    if sample == 0:
        return key
    return _digest(key.to_bytes(8, "little") + sample.to_bytes(8, "little"))


def _digest(content: bytes) -> int:
    """63 bits."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
