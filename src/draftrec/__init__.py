"""draftrec makes LLM-based recommender systems fast: draft cheaply, verify in one forward pass."""

from __future__ import annotations

import logging as _logging
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from draftrec.kernel_cache import find_place as _find_place

__version__ = "0.2.0"
__all__ = ["Generator", "__version__"]

# What happens is logged under this name. Whether and where it shows is the application's business.
_logging.getLogger(__name__).addHandler(_logging.NullHandler())

_find_place(_Path(__file__).parent)

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator as Generator


def __getattr__(name: str) -> Any:
    # PyTorch and transformers take seconds to import; `import draftrec` must not pay for them.
    if name == "Generator":
        from draftrec.jobs.knowledge.generator import Generator

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
