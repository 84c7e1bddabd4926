"""Texts of knowledge jobs, with the prompts that they answer, as token ids.

A run keeps its texts and a hash of every prompt; the prompts themselves are made once more of its
records, as the job made them, or of what `--keep-prompts` kept.

The target's last hidden states of both are computed once and kept in files. Texts are passed in the
order of their tokens, so that what two neighbours begin with (a template, a system prompt) is
computed once. A file holds those of some texts and owes nothing to other files: an interrupted pass
goes on with the next file, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from draftrec.config import AcceptConfig, ControlsConfig, RecordsConfig
from draftrec.core import EMPTY_TREE, IntArray
from draftrec.data.files.places import Place, arrow_path
from draftrec.data.files.writers import replace_file
from draftrec.data.records import Entity
from draftrec.data.templates import FRAMEWORKS
from draftrec.engine.learned.rules import ScoreRules
from draftrec.engine.packing import Segment
from draftrec.engine.target import Target
from draftrec.engine.text.batch import common_prefix, sort_key
from draftrec.engine.text.settings import resolve
from draftrec.errors import DraftrecError
from draftrec.jobs.knowledge.manifest import Manifest, recorded_settings
from draftrec.jobs.knowledge.plan import read_records
from draftrec.jobs.knowledge.shards import RunFolder, prompt_hash
from draftrec.models.prompting import PromptEncoder, PromptForm, form_of, has_chat_template

Config = TypeVar("Config", bound=BaseModel)

_BLOCK = 256


@dataclass(frozen=True, eq=False, slots=True)
class TrainingText:
    """`ids` int32 `[first + n]`: a prompt of `first` tokens and a text of n, at least 1."""

    entity_id: str
    ids: IntArray
    first: int
    rules: ScoreRules


@dataclass(frozen=True, eq=False, slots=True)
class Written:
    """A text as its run keeps it: int32 `token_ids`, the hash of its prompt, and that prompt where
    the run kept it."""

    entity_id: str
    token_ids: IntArray
    prompt_hash: int
    prompt: str | None


class WrittenRun:
    """A folder of `draftrec generate`, finished or not, and the first `limit` texts of its finished
    shards. `records`: where its records lie now; None: where they lay.

    Raises DraftrecError for any other folder, and for one without texts.
    """

    def __init__(self, folder: Place, records: str | None, limit: int | None) -> None:
        self.folder, self._files = folder, RunFolder(folder)
        manifest = self._files.to_read()
        if manifest is None:
            raise DraftrecError(f"{folder} is no run; give folders that `draftrec generate` wrote")
        self.manifest: Manifest = manifest
        self.settings = recorded_settings(manifest)
        self.records = records or str(manifest.paths["input"])
        self.texts = list(islice(self._read(), limit))
        if not self.texts:
            raise DraftrecError(
                f"{folder} holds no texts yet; let `draftrec generate` finish a shard of it"
            )

    def add_to(self, digest: Any) -> None:
        """Add all that decides what is learnt from the run to a hashlib digest."""
        for text in self.texts:
            digest.update(f"{text.entity_id}\t{text.prompt_hash}\t".encode())
            digest.update(np.ascontiguousarray(text.token_ids, "<i4").tobytes())
        digest.update(str(sorted(self.settings.items())).encode())
        digest.update(str(self.manifest.fingerprints.get("generation_config")).encode())

    def check(self, fingerprint: dict[str, str]) -> None:
        """Raise DraftrecError unless the target with these fingerprints wrote the texts."""
        for what in ("tokenizer", "model"):
            if self.manifest.fingerprints.get(what) != fingerprint[what]:
                raise DraftrecError(
                    f"the run in {self.folder} was written with another {what} than the target's; "
                    f"give runs of this target, or the --model that wrote it"
                )

    def rules(self, model: Any, tokenizer: Any) -> ScoreRules:
        """What the run did to scores. Raises DraftrecError where it went by other settings of the
        model's than there are now."""
        controls, accept = self._part(ControlsConfig), self._part(AcceptConfig)
        resolved = resolve(controls, accept, model, tokenizer)
        then = self.manifest.fingerprints.get("generation_config", "")
        if resolved.fingerprint != (then or ""):
            raise DraftrecError(
                f"the run in {self.folder} was written under another generation_config of the "
                "model's; put back the one of then"
            )
        return resolved.settings.score_rules(accept.temperature)

    def training_texts(self, model: Any, tokenizer: Any) -> list[TrainingText]:
        """Prompts and texts. Raises DraftrecError where the prompts cannot be made again."""
        rules, prompts = self.rules(model, tokenizer), self._prompts(tokenizer)
        return [
            TrainingText(
                text.entity_id,
                np.concatenate([prompts[text.prompt_hash], text.token_ids]),
                len(prompts[text.prompt_hash]),
                rules,
            )
            for text in self.texts
        ]

    def _read(self) -> Iterator[Written]:
        """Texts of at least one token."""
        for shard in range(len(self.manifest.shards)):
            part = pq.read_table(arrow_path(self._files.part(shard)))
            stats = pq.read_table(arrow_path(self._files.stats(shard)), columns=["prompt_hash"])
            kept = "prompt" in part.column_names
            columns = (
                part["entity_id"].to_pylist(),
                part["token_ids"].to_pylist(),
                stats["prompt_hash"].to_pylist(),
                part["prompt"].to_pylist() if kept else [None] * len(part),
            )
            for entity_id, ids, hashed, prompt in zip(*columns, strict=True):
                if ids:
                    yield Written(entity_id, np.array(ids, np.int32), hashed, prompt)

    def _prompts(self, tokenizer: Any) -> dict[int, IntArray]:
        """The prompts of all texts by their hashes."""
        form = self._form(tokenizer)
        wanted = {text.prompt_hash for text in self.texts}
        found: dict[int, IntArray] = {}
        kept = [text.prompt for text in self.texts if text.prompt is not None]
        # As they were sent: no template again. A text of a special token in them is lost.
        sent = tokenizer(kept, add_special_tokens=not form.chat).input_ids if kept else []
        self._take(found, wanted, (np.array(ids, np.int32) for ids in sent))
        if wanted > found.keys():
            self._take(found, wanted, self._made_again(PromptEncoder(tokenizer, form)))
        if missing := len(wanted - found.keys()):
            raise DraftrecError(
                f"{missing:,} of {len(wanted):,} prompts of the run in {self.folder} are not those "
                f"of its records, {self.records}, which were changed; name them as they were then "
                f"with --records"
            )
        return found

    def _take(
        self, found: dict[int, IntArray], wanted: set[int], prompts: Iterator[IntArray]
    ) -> None:
        for ids in prompts:
            if (hashed := prompt_hash(ids)) in wanted:
                found[hashed] = ids

    def _form(self, tokenizer: Any) -> PromptForm:
        records, manifest = self._records_config(), self.manifest
        chat = manifest.chat if manifest.chat is not None else has_chat_template(tokenizer)
        return form_of(records, has_template=chat, began=manifest.chat_date or datetime.now())

    def _records_config(self) -> RecordsConfig:
        settings = {**self.settings, "template": self.manifest.paths["template"]}
        return RecordsConfig(**{name: settings[name] for name in RecordsConfig.model_fields})

    def _part(self, kind: type[Config]) -> Config:
        """The recorded settings of one kind."""
        return kind(**{name: self.settings[name] for name in kind.model_fields})

    def _made_again(self, encoder: PromptEncoder) -> Iterator[IntArray]:
        """Token ids of the prompts of all records."""
        try:
            records = iter(read_records(self.records, self._records_config())[0])
            while block := list(islice(records, _BLOCK)):
                yield from encoder.encode([it.prompt for it in block if isinstance(it, Entity)])
        except DraftrecError as error:
            template = self.manifest.paths["template"]
            own = template is not None and template not in FRAMEWORKS
            where = f", and run this where its template {template} was named from" if own else ""
            raise DraftrecError(
                f"the prompts of the run in {self.folder} cannot be made again ({error}); name its "
                f"records with --records{where}"
            ) from error


def open_runs(
    folders: Seq[Place], records: Seq[str], limit: int | None
) -> tuple[list[WrittenRun], str]:
    """The runs, and a fingerprint of all that is learnt from them. `records`: of each, or none.

    Raises DraftrecError for other folders, one that is named twice, and runs of several models.
    """
    again = [folder for i, folder in enumerate(folders) if folder in folders[:i]]
    if again:
        raise DraftrecError(f"{again[0]} is named twice, and would count twice; name it once")
    if records and len(records) != len(folders):
        raise DraftrecError(
            f"--records names {len(records)} files of records and there are {len(folders)} runs; "
            "name those of each run, in the same order, or none"
        )
    places = [*records] or [None] * len(folders)
    runs = [WrittenRun(folder, at, limit) for folder, at in zip(folders, places, strict=True)]
    digest = hashlib.sha256()
    for run in runs:
        run.check(
            {what: str(runs[0].manifest.fingerprints[what]) for what in ("tokenizer", "model")}
        )
        run.add_to(digest)
    return runs, digest.hexdigest()


_TEXTS = 64  # of a file
_CHUNK = 512  # most rows of a pass
_NAME = "features"
_IDENTITY = "texts.sha256"


class FeatureFiles:
    """Features of `texts` int32 `[L]` each, in `folder`: of text i `[L - 1, H]`, of all rows but
    the last one, in half precision. What lies there of other texts is removed."""

    def __init__(self, folder: Path, texts: Seq[IntArray], model: str) -> None:
        self.folder, self.texts = folder, texts
        self._order = sorted(range(len(texts)), key=lambda i: sort_key(texts[i]))
        sizes = [len(texts[i]) - 1 for i in self._order]
        self._places = {
            text: (at // _TEXTS, sum(sizes[at - at % _TEXTS : at]))
            for at, text in enumerate(self._order)
        }
        digest = hashlib.sha256(model.encode())
        for ids in texts:
            digest.update(np.array([len(ids), *ids], "<i4").tobytes())
        self._identity = digest.hexdigest()

    def claim(self) -> None:
        """Make the folder, or go on in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _IDENTITY
        if not path.is_file() or path.read_text() != self._identity:
            self.clear()
            self.folder.mkdir(exist_ok=True)
            replace_file(path, self._identity.encode())

    def clear(self) -> None:
        """Remove what was kept."""
        for path in self.folder.glob("*"):
            path.unlink()
        self.folder.rmdir()

    @property
    def missing(self) -> list[int]:
        """Files that are to be computed."""
        count = -(-len(self.texts) // _TEXTS)
        return [i for i in range(count) if not self._path(i).is_file()]

    def compute(
        self, target: Target, watch: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> bool:
        """Compute what is missing; `watch` is told of how many texts there is something. False if
        `should_stop()` ended it before."""
        target.keep_features()
        target.reserve(1, max(len(ids) for ids in self.texts))
        missing = self.missing
        done = len(self.texts) - sum(len(self._of(file)) for file in missing)
        for file in missing:
            rows: list[torch.Tensor] = []
            for features in self._pass(target, self._of(file)):
                rows.append(features)
                watch(done + len(rows))
                if should_stop():
                    return False
            replace_file(self._path(file), save({_NAME: torch.cat(rows)}))
            done += len(rows)
        return True

    def __getitem__(self, text: int) -> torch.Tensor:
        """`[L - 1, H]`. Raises DraftrecError for a file that was changed."""
        file, first = self._places[text]
        try:
            return self._open(file)[first : first + len(self.texts[text]) - 1]
        except (OSError, SafetensorError) as error:
            raise DraftrecError(
                f"{self._path(file)} is damaged; remove it, and run the same command again"
            ) from error

    def _pass(self, target: Target, texts: Seq[int]) -> Iterator[torch.Tensor]:
        """Features of texts, one after another in one slot."""
        held: IntArray = np.empty(0, np.int32)
        half = torch.bfloat16 if target.dtype == torch.bfloat16 else torch.float16
        most = torch.finfo(half).max
        for text in texts:
            ids = self.texts[text][:-1]
            shared = common_prefix(held, ids)
            if max(len(held), len(ids)) > target.shared_length:
                shared = 0
            for start in range(shared, len(ids), _CHUNK):
                pending = ids[start : start + _CHUNK]
                target.score([Segment(0, start, pending, EMPTY_TREE, False, len(ids))])
            slab: Any = target.slab
            yield slab.features[0, : len(ids)].clamp(-most, most).to("cpu", half, copy=True)
            held = ids

    def _of(self, file: int) -> list[int]:
        return self._order[file * _TEXTS : (file + 1) * _TEXTS]

    def _path(self, file: int) -> Path:
        return self.folder / f"{_NAME}-{file:05d}.safetensors"

    def _open(self, file: int) -> Any:
        if file not in self._opened:
            opened: Any = safe_open(self._path(file), framework="pt")
            self._opened[file] = opened.get_slice(_NAME)
        return self._opened[file]

    @cached_property
    def _opened(self) -> dict[int, Any]:
        return {}
