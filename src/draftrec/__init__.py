"""draftrec makes LLM-based recommender systems fast: draft cheaply, verify in one forward pass."""

from __future__ import annotations

import logging as _logging
from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

from draftrec.kernel_cache import find_place as _find_place

__version__ = "0.2.0"
__all__ = ["Generator", "ItemRecommender", "Query", "__version__"]

# What happens is logged under this name. Whether and where it shows is the application's business.
_logging.getLogger(__name__).addHandler(_logging.NullHandler())

_find_place(_Path(__file__).parent)

if TYPE_CHECKING:
    from draftrec.jobs.knowledge.generator import Generator as Generator
    from draftrec.jobs.recommend.catalogue import Query as Query
    from draftrec.jobs.recommend.recommender import ItemRecommender as ItemRecommender


#: Where the names lie that are loaded when they are first asked for: PyTorch and transformers take
#: seconds to import, which `import draftrec` must not pay for.
_LAZY = {
    "Generator": "draftrec.jobs.knowledge.generator",
    "ItemRecommender": "draftrec.jobs.recommend.recommender",
    "Query": "draftrec.jobs.recommend.catalogue",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(_import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
