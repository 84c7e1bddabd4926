"""YAML files that people write: maps, limits, settings."""

from __future__ import annotations

from typing import Any

import yaml

from draftrec.data.places import Place
from draftrec.errors import DraftrecError


def read_yaml(path: Place, called: str) -> Any:
    """The content of the file, None if it is empty; `called` names it in what is said of it.

    Raises DraftrecError for a file that cannot be read and for what is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DraftrecError(f"{called} {path} cannot be read: {reason}") from error
