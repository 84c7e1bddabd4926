"""The scripts of benchmarks/ import each other by name, as they do when one of them is run."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
