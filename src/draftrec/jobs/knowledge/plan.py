"""What a job is asked to do, and whether it may: inputs, settings, and the run already there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from draftrec.config import JobConfig, RecordsConfig, StructureConfig, with_values
from draftrec.data.files.places import Place, place, shown
from draftrec.data.files.texts import read_text
from draftrec.data.records import EntityReader, GroupTable, Layout
from draftrec.data.tables.readers import open_records
from draftrec.data.templates import TEMPLATE_SCHEMA, fitted_to, load_template, schema_of
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import (
    Facts,
    InputEntry,
    Manifest,
    differences,
    recorded_settings,
    settings_of,
)
from draftrec.jobs.knowledge.refresh import PreviousRun
from draftrec.jobs.knowledge.shards import RunFolder
from draftrec.jobs.ledger import package_versions
from draftrec.pool.files import MANIFEST, fingerprint

_LOG = logging.getLogger(__name__)
# Reading through so much takes a moment that should have a name.
_LARGE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to do: the settings, and the files that they are applied to."""

    config: JobConfig
    input: str
    output: Place
    groups: Place | None = None
    pool: Path | None = None
    save_pool: Path | None = None
    previous: Place | None = None
    overwrite: bool = False

    def run_folder(self) -> RunFolder:
        """The files in `output`, of the form that the settings ask for."""
        keep, samples = self.config.records.keep_prompts, self.config.generate.accept.n
        return RunFolder(self.output, keep_prompts=keep, samples=samples)

    def with_settings(self, **settings: Any) -> JobSpec:
        """The same job with other settings of `GenerateConfig` by name."""
        generate = with_values(self.config.generate, settings)
        return replace(self, config=self.config.model_copy(update={"generate": generate}))


class Plan:
    """A job's inputs, opened and checked; nothing is written here."""

    def __init__(self, spec: JobSpec) -> None:
        groups = GroupTable.load(spec.groups) if spec.groups else None
        self.reader, records = read_records(spec.input, spec.config.records, groups)
        self.source, template = self.reader.source, self.reader.layout.template
        spec = replace(spec, config=spec.config.model_copy(update={"records": records}))
        self.spec = spec
        folder = spec.run_folder()
        if any(folder.holds(path) for path in self.source.files):
            raise DraftrecError(f"{spec.input} lies in the output folder; choose another --output")
        self.previous = _previous_run(spec)
        drafts_from_pool = spec.config.generate.draft.draft == "pool"
        if spec.save_pool:
            _check_save_pool(spec.save_pool, drafts_from_pool=drafts_from_pool)
        self.settings = settings_of(spec.config)
        self.fingerprints: dict[str, str | None] = {
            "input": self.source.fingerprint(),
            "template": template.fingerprint if template else None,
            "groups": groups.fingerprint if groups else None,
            "pool": _pool_fingerprint(spec.pool) if spec.pool and drafts_from_pool else None,
            "previous": self.previous.fingerprint if self.previous else None,
        }

    def check(self) -> None:
        """Read the whole input once for repeated ids and unreadable places."""
        self.records  # noqa: B018 - computed and kept

    @cached_property
    def records(self) -> int:
        """How many records there are."""
        if sum(path.stat().st_size for path in self.source.files) > _LARGE_BYTES:
            _LOG.info("reading the records of %s", self.spec.input)
        return self.reader.check_ids([self.previous] if self.previous else [])

    @property
    def paths(self) -> dict[str, str | None]:
        """Where everything lies, as the user named it."""
        spec = self.spec
        paths = {
            "input": shown(spec.input),
            "template": shown(spec.config.records.template),
            "groups": spec.groups,
            "pool": spec.pool,
            "save_pool": spec.save_pool,
            "previous": spec.previous,
        }
        return {name: None if path is None else str(path) for name, path in paths.items()}

    def manifest(self, facts: Facts) -> Manifest:
        """The manifest of a run that has not begun."""
        return Manifest(
            settings=self.settings,
            fingerprints={**self.fingerprints, **facts.fingerprint},
            paths=self.paths,
            versions=package_versions(),
            input=InputEntry(
                sha256=str(self.fingerprints["input"]),
                files=len(self.source.files),
                records=self.records,
            ),
            device=facts.device,
            dtype=facts.dtype,
            threads=facts.threads,
            exact=facts.exact,
            cost_state=facts.cost_state,
        )


def read_records(
    location: str, records: RecordsConfig, groups: GroupTable | None = None
) -> tuple[EntityReader, RecordsConfig]:
    """A reader of the records, and the settings as they turn out to be for them."""
    source = open_records(location)
    records = fitted_to(source, records)
    template = load_template(records.template, records.side) if records.template else None
    columns = (records.id_column, records.prompt_column, records.group_column)
    reader = EntityReader(source, Layout(template, *columns), groups, records.limit)
    reader.check_columns()
    return reader, records


def continued(plan: Plan, folder: RunFolder) -> Manifest | None:
    """The manifest to go on from; None to start anew; refuses to mix two runs."""
    spec = plan.spec
    manifest = folder.manifest()
    if manifest is None or spec.overwrite:
        return None
    if _binds_nobody(manifest, folder):
        return None
    now = dict(plan.fingerprints)
    if manifest.shards_complete and spec.save_pool and spec.save_pool == spec.pool:
        del now["pool"]  # the run may have been cut off after it had saved its pool over this one
    folder.ledger.refuse(differences(manifest, plan.settings, now))
    kept = manifest.paths.get("save_pool")
    if manifest.finished and spec.save_pool and str(spec.save_pool) != kept:
        raise DraftrecError(
            f"the run in {folder.path} is finished and kept no pool at {spec.save_pool}; build one "
            f"from its texts with `draftrec pool build`"
        )
    folder.check_parts(manifest)
    return manifest


def _binds_nobody(manifest: Manifest, folder: RunFolder) -> bool:
    """Whether the run has no text yet that could be lost."""
    return not manifest.shards and not folder.journaled(0)


def as_begun(plan: Plan, begun: Manifest | None) -> JobSpec:
    """The job as its model is to be loaded: what was begun on a CPU, where an automatic precision
    is up to the processor and the version, goes on in the same one."""
    spec, target = plan.spec, plan.spec.config.generate.target
    if begun is None or target.dtype != "auto" or begun.device != "cpu" or not begun.dtype:
        return spec
    return spec.with_settings(dtype=begun.dtype)


def lag_to_use(output: Place, usual: int, *, overwrite: bool) -> int:
    """The pool lag of a job whose texts depend on it: as the run in `output` was begun, else the
    usual one."""
    folder = RunFolder(output)
    begun = None if overwrite else folder.manifest()
    if begun is None or _binds_nobody(begun, folder):
        return usual
    lag = recorded_settings(begun)["pool_lag"]
    return usual if lag == "auto" else lag


def _previous_run(spec: JobSpec) -> PreviousRun | None:
    if spec.previous is None:
        return None
    if spec.previous.resolve() == spec.output.resolve():
        raise DraftrecError("--previous and --output are one folder; write the new run elsewhere")
    return PreviousRun(spec.previous)


def _pool_fingerprint(folder: Path) -> str:
    try:
        return fingerprint(folder)
    except OSError as error:
        raise DraftrecError(
            f"{folder} is not a pool, {MANIFEST} cannot be read ({error.strerror}); give a folder "
            f"that --save-pool or `draftrec pool build` made"
        ) from error


def _check_save_pool(folder: Path, *, drafts_from_pool: bool) -> None:
    """Find out before the work, not after it, that the pool cannot be kept there."""
    if not drafts_from_pool:
        raise DraftrecError("--save-pool needs a pool to save; use it with --draft pool")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise DraftrecError(
            f"{folder} exists and is not a pool; name a new folder with --save-pool"
        )


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
        form = {"json_schema": text}
    elif options.regex is not None:
        form, origin = {"regex": options.regex}, "--regex"
    else:
        assert options.grammar is not None
        form, origin = {"grammar": _read(options.grammar, "grammar")}, str(options.grammar)
    try:
        structure = StructureConfig(**form)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise DraftrecError(f"{origin} {reason}; mend it there") from error
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
    called = f"the {what} {path}"
    return read_text(path, called, f"{called} does not exist; give an existing file")
