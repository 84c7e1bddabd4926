"""Prompt templates: the four published knowledge frameworks, or a Jinja2 file of the user's own.

Which side's template is meant, records say by their columns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from draftrec.config import RecordsConfig, Side
from draftrec.data.files.places import Place, RemotePath, place
from draftrec.data.files.texts import read_text
from draftrec.data.files.writers import spelt
from draftrec.data.phrasing import FILTERS
from draftrec.errors import DraftrecError

if TYPE_CHECKING:
    from draftrec.data.tables.readers import RecordSource

FRAMEWORKS = ("kar", "trawl", "once", "rlmrec")

_SCHEMA = ".schema.json"
_OPTIONAL = re.compile(r"\{#-?\s*optional:\s*([\w\s,]*?)\s*-?#\}")

#: What a template of the user's own can raise on a record it was not written for.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True, slots=True)
class Template:
    """A checked template. Holds plain values only, so that workers can be sent a copy.

    `schema`: the JSON schema of the answers that it asks for, as text, None where it asks for
    prose. A file's lies beside it: `mine.schema.json` beside `mine.j2`.
    """

    name: str
    source: str
    fingerprint: str
    required_fields: tuple[str, ...]
    schema: str | None = None

    def render(self, record: Mapping[str, Any]) -> str:
        """Fill in one record. A null field counts as missing, and one without words does unless
        it is required."""
        needed = self.required_fields
        fields = {n: v for n, v in _clean(record).items() if n in needed or not _is_blank(v)}
        missing = [name for name in self.required_fields if name not in fields]
        if missing:
            raise DraftrecError(
                f"template {self.name!r} needs the field {missing[0]!r}, which is missing or null "
                f"in the record; add it, or choose a template that does not use it"
            )
        if "history" in self.required_fields and isinstance(fields["history"], str):
            raise DraftrecError(
                f"template {self.name!r} needs 'history' as a list, but the record holds one "
                f"string; give a list of titles or of objects with a title"
            )
        try:
            return _compile(self.source).render(fields)
        except jinja2.UndefinedError as error:
            raise DraftrecError(
                f"template {self.name!r} asks for something the record lacks: {error}; add it to "
                f"the record or test for it with 'is defined'"
            ) from error
        except _RENDER_ERRORS as error:
            raise DraftrecError(
                f"template {self.name!r} cannot be filled in with this record: {error}; "
                f"check the field's type against what the template does with it"
            ) from error


def load_template(name_or_path: str, side: Side) -> Template:
    """Load a framework's template by name (`kar`, `trawl`, `once`, `rlmrec`) or a file by path,
    with its schema if it has one."""
    if name_or_path in FRAMEWORKS:
        return _built_in(f"{name_or_path}_{side}")
    path = place(name_or_path)
    source = _read(path)
    alone = isinstance(path, RemotePath) and not path.has_folders  # nothing lies beside a page
    beside = path.with_suffix(_SCHEMA)
    return _parse(str(path), source, None if alone or not beside.is_file() else _read(beside))


def facts_template() -> Template:
    """What a record says of its item, a line each: no prompt, but a text to make a vector of."""
    return _built_in("facts_item")


def _built_in(name: str) -> Template:
    folder = resources.files("draftrec") / "data" / "prompts"
    beside = folder / f"{name}{_SCHEMA}"
    schema = beside.read_text(encoding="utf-8") if beside.is_file() else None
    return _parse(name, (folder / f"{name}.j2").read_text(encoding="utf-8"), schema)


#: In place of a JSON schema: the one that the template comes with.
TEMPLATE_SCHEMA = "template"


def schema_of(name_or_path: str | None, side: Side) -> str:
    """The JSON schema that a template comes with, as text. Raises DraftrecError if it has none."""
    if name_or_path is None:
        raise DraftrecError(
            "the JSON schema is to be the template's, and there is no template; name a template, "
            "or give a schema"
        )
    template = load_template(name_or_path, side)
    if template.schema is None:
        own = f"write {Path(name_or_path).with_suffix(_SCHEMA).name} beside it"
        mend = "give a schema of your own" if name_or_path in FRAMEWORKS else own
        raise DraftrecError(f"template {template.name!r} comes with no JSON schema; {mend}")
    return template.schema


def _read(path: Place) -> str:
    return read_text(
        path,
        f"template file {str(path)!r}",
        f"template {str(path)!r} is neither one of {', '.join(FRAMEWORKS)} nor an existing "
        f"file; name one of these or give the path of a Jinja2 file",
    )


def _parse(name: str, source: str, schema: str | None) -> Template:
    try:
        tree = _environment().parse(source)
        _compile(source)
    except jinja2.TemplateSyntaxError as error:
        raise DraftrecError(
            f"template {name!r} line {error.lineno}: {error.message}; mend the Jinja2 syntax there"
        ) from error
    required = meta.find_undeclared_variables(tree) - _optional_fields(source, tree)
    fingerprint = hashlib.sha256(source.encode()).hexdigest()
    return Template(name, source, fingerprint, tuple(sorted(required)), schema)


def _optional_fields(source: str, tree: nodes.Template) -> set[str]:
    """Fields declared in an `optional:` comment, tested with `is defined` or given a default."""
    found: set[str] = set()
    for match in _OPTIONAL.finditer(source):
        found.update(name.strip() for name in match[1].split(",") if name.strip())
    for node in tree.find_all((nodes.Test, nodes.Filter)):
        guards = node.name in ("defined", "undefined", "default", "d")
        if guards and isinstance(node.node, nodes.Name):
            found.add(node.node.name)
    return found


def _clean(value: Any) -> Any:
    """Drop nulls and NaN from mappings (columnar files and pandas fill absent fields with them);
    show 4.0 as 4, and decimals as other numbers."""
    if isinstance(value, str):  # most are, and the other questions take long
        return value
    if hasattr(value, "tolist"):  # NumPy's, as pandas holds them
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _clean(inner) for key, inner in value.items() if not _is_null(inner)}
    if isinstance(value, list | tuple):
        return [_clean(inner) for inner in value]
    if isinstance(value, Decimal):
        return spelt(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _is_blank(value: Any) -> bool:
    """Whether it is a text, or a list, in which nothing is written."""
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, list) and all(it is None or _is_blank(it) for it in value)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    # Jinja's own tojson escapes for HTML; a prompt is read by a language model.
    environment.filters["tojson"] = _to_json
    environment.filters["only"] = _only
    environment.filters.update(FILTERS)
    return environment


def _only(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=spelt)


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


_LOG = logging.getLogger("draftrec")


def fitted_to(source: RecordSource, records: RecordsConfig) -> RecordsConfig:
    """The same with the side and the id column that the records have, as far as these were left to
    what is usual and only one can be meant; what is taken is said in the log.

    Raises DraftrecError for several columns that could hold ids, and for records of users where
    items were asked for.
    """
    # Here, as the command line reads names of templates for its help, which loads no pyarrow.
    from draftrec.data.tables.columns import ENTITY, find_column

    changes: dict[str, str] = {}
    if records.id_column == ENTITY.usual:
        name = find_column(source, ENTITY)
        changes["id_column"] = name or records.id_column
    if records.template in FRAMEWORKS:
        changes["side"] = _side(source, records)
    return records.model_copy(update=changes)


def _side(source: RecordSource, records: RecordsConfig) -> str:
    """The side whose template the records can fill in, the one asked for if they can."""
    assert records.template is not None
    names = set(source.columns())
    fits = {
        side: names.issuperset(load_template(records.template, side).required_fields)
        for side in ("user", "item")
    }
    if fits[records.side] or not any(fits.values()):
        return records.side
    if records.side == "item":
        raise DraftrecError(
            f"{source.files[0]} has a history and no title, so its records are of users; leave "
            "--side item out"
        )
    _LOG.info(
        "%s has a title and no history: its records are of items, as with --side item",
        source.files[0],
    )
    return "item"
