"""The fictional bookshop of `scripts/bookshop`, for benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from bookshop.world import knowledge_text, stream_records

__all__ = ["knowledge_text", "stream_records"]
