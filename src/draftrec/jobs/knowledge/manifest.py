"""What a run folder says about itself: settings, inputs, which shards are done, what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from draftrec.config import MOST_RECORDS, GenerateConfig, JobConfig, ModelConfig, StructureConfig
from draftrec.core import COUNTED, SOURCES, Counts, Generation, ratio
from draftrec.data.files.places import Place
from draftrec.engine.text.stats import Spent
from draftrec.jobs.knowledge.account import Endings, exactness, pool_note
from draftrec.jobs.ledger import changes, input_changes, read_state
from draftrec.models.prompting import ChatTemplate


class ShardEntry(BaseModel):
    """A finished shard. `records` = those written, whose texts are the `rows`, + `rejected`; the
    sizes are in bytes."""

    records: int
    rows: int
    rejected: int
    part_size: int
    stats_size: int


class Totals(BaseModel):
    """Sums over all finished shards, however many times the job was interrupted.

    The `entities` have `texts`, one each or more. Those of `kept` entities stayed as an earlier run
    wrote them; the other sums leave them out, but for `cut_texts`, `empty_texts` and
    `looping_texts`. That run had written for `earlier` of the entities.
    `curve_seconds` and `plain_seconds`: the verifying passes by the cost curve, and those that
    would have done without drafts.
    """

    entities: int = 0
    texts: int = 0
    rejected: int = 0
    kept: int = 0
    earlier: int = 0
    new_tokens: int = 0
    target_calls: int = 0
    draft_calls: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    relaxed_tokens: int = 0
    accepted_by_source: list[int] = Field(default_factory=lambda: [0] * len(SOURCES))
    wall_seconds: float = 0.0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    prefill_seconds: float = 0.0
    peak_memory_bytes: int = 0
    curve_seconds: float = 0.0
    plain_seconds: float = 0.0
    cut_texts: int = 0
    empty_texts: int = 0
    looping_texts: int = 0

    @field_validator("accepted_by_source")
    @classmethod
    def _of_all_sources(cls, counts: list[int]) -> list[int]:
        """Runs that are older than a source have counted nothing for it."""
        return counts + [0] * (len(SOURCES) - len(counts))

    @model_validator(mode="before")
    @classmethod
    def _one_text_each(cls, values: Any) -> Any:
        """Older runs have not counted texts: there was one per entity."""
        if isinstance(values, dict) and "texts" not in values:
            return {**values, "texts": values.get("entities", 0)}
        return values

    def add(
        self, generations: Seq[Generation], *, rejected: int, kept: int, samples: int = 1
    ) -> None:
        """Count what one shard wrote, and how many entities it rejected and kept; `samples`: texts
        of each."""
        self.entities += len(generations) // samples + kept
        self.texts += len(generations) + kept * samples
        self.rejected += rejected
        self.kept += kept
        new_tokens = sum(len(g.token_ids) for g in generations)
        self.count(sum((g.counts for g in generations), Counts()), new_tokens)

    def count(self, counts: Counts, new_tokens: int) -> None:
        """Add what texts of so many new tokens cost."""
        total = self.counts + counts
        for name in (*COUNTED, "accepted_by_source"):
            setattr(self, name, getattr(total, name))
        self.new_tokens += new_tokens

    @property
    def counts(self) -> Counts:
        """What the texts cost, and what their drafts were worth."""
        return Counts.of(self)

    def end(self, endings: Endings) -> None:
        """Count how the texts of one shard ended, those kept included."""
        self.cut_texts += endings.cut
        self.empty_texts += endings.empty
        self.looping_texts += endings.looping

    @property
    def spent(self) -> Spent:
        """The seconds, as parts of passes."""
        return Spent(
            self.draft_seconds,
            self.verify_seconds,
            self.prefill_seconds,
            self.curve_seconds,
            self.plain_seconds,
        )

    @property
    def endings(self) -> Endings:
        """How all texts so far ended."""
        return Endings(self.texts, self.cut_texts, self.empty_texts, self.looping_texts)

    def rates(self) -> dict[str, float]:
        """What the counts mean; 0 where nothing was counted."""
        return {
            **self.counts.rates(self.new_tokens),
            "tokens_per_second": ratio(self.new_tokens, self.wall_seconds),
        }


class InputEntry(BaseModel):
    """The records a run was started on."""

    sha256: str
    files: int
    records: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What a job records, and decides by, of the model that its workers have."""

    fingerprint: dict[str, str]
    device: str
    dtype: str
    has_chat_template: bool
    chat_template: ChatTemplate | None = None
    cost_state: dict[str, Any] | None = None
    threads: int | None = field(default=None, compare=False)  # workers' machines may differ
    exact: bool = field(default=False, compare=False)


class Manifest(BaseModel):
    """The content of `manifest.json`.

    `settings` and `fingerprints` must be equal for a run to be continued; `paths` and `versions`
    only inform. `chat_date` is what the chat template takes for the time, if it writes the date.
    `rejected_size` is how much of `rejected.jsonl` belongs to finished shards.
    """

    format: Literal["draftrec-run"] = "draftrec-run"
    format_version: Literal[1] = 1
    settings: dict[str, Any]
    fingerprints: dict[str, str | None]
    paths: dict[str, str | None]
    versions: dict[str, str]
    input: InputEntry
    device: str = ""
    dtype: str = ""
    chat_date: datetime | None = None
    chat: bool | None = None
    threads: int | None = None
    exact: bool = False
    shards: list[ShardEntry] = Field(default_factory=list)
    rejected_size: int = 0
    totals: Totals = Field(default_factory=Totals)
    cost_state: dict[str, Any] | None = None
    finished: bool = False

    @property
    def samples(self) -> int:
        """Texts of each record."""
        return int(self.settings.get("n", 1))

    @property
    def records_done(self) -> int:
        """Records of the input that finished shards cover."""
        return sum(shard.records for shard in self.shards)

    @property
    def shards_complete(self) -> bool:
        """Whether every record of the input is covered."""
        return self.records_done >= self.input.records

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        totals = self.totals.model_dump(exclude={"curve_seconds", "plain_seconds"})
        by_source = dict(zip(SOURCES, totals.pop("accepted_by_source"), strict=True))
        names = {name: self.settings[name] for name in ("model", "accept", "draft")}
        where = {"device": self.device, "dtype": self.dtype, "threads": self.threads}
        shares = {name: ratio(n, self.totals.new_tokens) for name, n in by_source.items()}
        times, kind = self._times_plain()
        settings = recorded_settings(self)
        form = next((n for n in StructureConfig.model_fields if settings[n] is not None), None)
        found = {
            **totals,
            **self.totals.rates(),
            "accepted_by_source": by_source,
            **where,
            **names,
            "times_plain": times,
            "times_plain_kind": kind,
            "share_by_source": shares,
            "pool_share": shares["group"] + shares["all"],
            "chat": self.chat,
            "exact": exactness(names["accept"], self.dtype, exact=self.exact),
            "structure": form,
        }
        known = {**settings, "known": self.fingerprints.get("pool") is not None}
        return {**found, "pool_note": pool_note(found, known, self.cost_state)}

    def _times_plain(self) -> tuple[float | None, str]:
        """How many times as long as it took the job would have taken without drafts. None for a run
        that an earlier version wrote, which did not look at that."""
        totals = self.totals
        if self.settings["draft"] == "none" or not totals.new_tokens:
            return 1.0, "measured"
        return totals.spent.times_plain, "estimated"


def read_manifest(path: Place, mend: str = "choose another --output") -> Manifest | None:
    """The manifest at `path`, or None where there is none. `mend`: what helps with another one."""
    return read_state(path, Manifest, f"generate; {mend}")


def settings_of(config: JobConfig) -> dict[str, Any]:
    """Every setting under the name of its command-line option."""
    flat: dict[str, Any] = {}
    pending: list[BaseModel] = [config]
    while pending:
        group = pending.pop()
        values = group.model_dump(mode="json")
        for name in type(group).model_fields:
            inner = getattr(group, name)
            if isinstance(inner, BaseModel):
                pending.append(inner)
            else:
                flat[name.rstrip("_")] = values[name]
    # Their content decides, not where they lie; see the fingerprints.
    del flat["template"], flat["drafter"]
    model = Path(flat["model"])
    if model.exists():
        flat["model"] = str(model.resolve())
    return dict(sorted(flat.items()))


def recorded_settings(then: Manifest) -> dict[str, Any]:
    """A run's settings by name. A setting that is younger than the run has its default, which is
    what the run did."""
    defaults = settings_of(JobConfig(generate=GenerateConfig(target=ModelConfig(model=""))))
    recorded = {**defaults, **then.settings}
    if recorded.pop("compile", False):
        recorded["pass"] = "frozen"  # as it was called then
    if "sample_top_k" not in then.settings and recorded["top_p"] == 1.0:
        recorded["top_p"] = None  # 1 was the default in those days
    return recorded


#: Fingerprints that runs of earlier versions lack, in which nothing of the kind was read.
_LATE = {"generation_config", "drafter"}


def differences(
    then: Manifest, settings: Mapping[str, Any], fingerprints: Mapping[str, str | None]
) -> list[str]:
    """What was otherwise when the run was started, one phrase each."""
    recorded = recorded_settings(then)
    drafts_decide = settings["accept"] != "strict" and settings["draft"] == "pool"
    without = {"threads"} if drafts_decide else {"threads", "pool_lag"}
    names = {*then.settings, *settings} - without - {"compile"}  # recorded as `pass`
    before = {name: recorded.get(name) for name in names}
    now = {name: settings.get(name) for name in names}
    if not drafts_decide and {before["shard_size"], now["shard_size"]} == {"auto", MOST_RECORDS}:
        now["shard_size"] = before["shard_size"]  # the same shards
    # What is younger than the run cannot be compared; but in those days nobody asked the model.
    told = {
        name: new
        for name, new in fingerprints.items()
        if name in then.fingerprints or (name in _LATE and new)
    }
    if settings["accept"] == "strict":  # no draft decides what is written
        told.pop("drafter", None)
    return changes(before, now) + input_changes(then.fingerprints, told)
