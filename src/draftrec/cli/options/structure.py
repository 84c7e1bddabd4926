"""`--json-schema`, `--regex` and `--grammar`: files read and checked before a model is loaded."""

from __future__ import annotations

from typing import Protocol

from draftrec.config import RecordsConfig, StructureConfig
from draftrec.data.files.places import Place, place
from draftrec.data.templates import TEMPLATE_SCHEMA, load_template, schema_of
from draftrec.errors import DraftrecError


class StructureOptions(Protocol):
    """What a command line says about the form of texts."""

    @property
    def json_schema(self) -> str | None: ...
    @property
    def regex(self) -> str | None: ...
    @property
    def grammar(self) -> Place | None: ...


def structure_of(options: StructureOptions, records: RecordsConfig) -> StructureConfig:
    """The form that texts are to have. Raises DraftrecError for options that contradict each other,
    files that cannot be read, and what llguidance cannot follow, naming file and place."""
    named = {
        "--json-schema": options.json_schema,
        "--regex": options.regex,
        "--grammar": options.grammar,
    }
    given = [name for name, value in named.items() if value is not None]
    if not given:
        return StructureConfig()
    if len(given) > 1:
        raise DraftrecError(f"{' and '.join(given)} are two forms; a text has one, leave one out")
    from draftrec.engine.text.grammar_text import check_structure

    if options.json_schema is not None:
        text, origin = _schema(options.json_schema, records)
        structure = StructureConfig(json_schema=text)
    elif options.regex is not None:
        structure, origin = StructureConfig(regex=options.regex), "--regex"
    else:
        assert options.grammar is not None
        structure = StructureConfig(grammar=_read(options.grammar, "grammar"))
        origin = str(options.grammar)
    check_structure(structure, origin)
    return structure


def schema_unused(records: RecordsConfig, structure: StructureConfig) -> str | None:
    """A line for users whose template has a schema that they did not ask for."""
    if structure != StructureConfig() or records.template is None:
        return None
    if load_template(records.template, records.side).schema is None:
        return None
    return (
        f"template {records.template} comes with a JSON schema; with --json-schema "
        f"{TEMPLATE_SCHEMA} every text that ends is valid JSON"
    )


def _schema(name: str, records: RecordsConfig) -> tuple[str, str]:
    """The schema's text, and where it is from."""
    if name != TEMPLATE_SCHEMA:
        return _read(place(name), "JSON schema"), str(place(name))
    return schema_of(records.template, records.side), f"the schema of template {records.template}"


def _read(path: Place, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DraftrecError(f"the {what} {path} does not exist; give an existing file") from error
    except UnicodeDecodeError as error:
        raise DraftrecError(
            f"the {what} {path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise DraftrecError(
            f"the {what} {path} cannot be read: {error.strerror}; check path and rights"
        ) from error
