"""Files that people write, read whole: texts (templates, schemas, grammars), and YAML (maps,
limits, settings).

Scalars of YAML are texts, as they were written, and whoever asks for a number or a switch converts
them. YAML 1.1 would guess: `NO` and `on` become booleans, `01234` an octal number, `12:30` a count
of seconds, `1.10` a version with one digit less.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from draftrec.data.files.places import Place
from draftrec.errors import DraftrecError


def read_text(path: Place, called: str, missing: str) -> str:
    """The text of a UTF-8 file, `called` so in what is said of it; `missing`: what is said if there
    is none. A byte-order mark in front, as some editors write it, is none of it. Raises
    DraftrecError for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DraftrecError(missing) from error
    except UnicodeDecodeError as error:
        raise DraftrecError(
            f"{called} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DraftrecError(
            f"{called} cannot be read: {error.strerror}; check path and rights"
        ) from error


class _Texts(yaml.SafeLoader):
    """Guesses nothing but null, and refuses what is said twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001
        seen: set[Any] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is repeated", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


_Texts.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
_Texts.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile("^<<$"), ["<"])


def read_yaml(path: Place, called: str) -> Any:
    """The content of the file: mappings and lists of texts and None; None if it is empty.
    `called` names it in what is said of it.

    Raises DraftrecError for a file that cannot be read, for what is no YAML and for a key that is
    there twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Texts)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DraftrecError(f"{called} {path} cannot be read: {reason}") from error
